"""What compute-sanitizer watches: steps, looks at them, counts and sums of squares on the GPU.

On request one planted error instead. Run with PYTORCH_NO_CUDA_MEMORY_CACHING=1, so that no tensor
has room beyond its last element.
"""

from __future__ import annotations

import itertools
import sys
from importlib.util import find_spec

import torch
from cases import DTYPES, SIZES
from test_gpu_control import OnGpu, Sum, random
from twins import GPU, Twins, tensors
from watched import FEW_SIZES, STORED, check_looks

from adamod_fused.backends import extension
from adamod_fused.formats import STATE_FORMATS, WEIGHT_FORMATS
from adamod_fused.reference import AdaMod


def steps() -> None:
    """Awkward sizes at all alignments, in tables by value and by address."""
    offsets = [lambda tensor, i=i: tensor[i:] for i in range(3)]
    for backend in ("cuda", "triton") if find_spec("triton") else ("cuda",):
        for dtype in DTYPES:
            values = tensors([size + 2 for size in SIZES], dtype, seed=1)
            twins = Twins(backend, values, layouts=offsets)
            twins.step(2)
            twins.check(f"on {backend}")
        for state, weight in itertools.product(STATE_FORMATS, WEIGHT_FORMATS):
            group = {"state_format": state, "weight_format": weight, "min_coded_numel": 0}
            values = tensors([size + 2 for size in SIZES], torch.bfloat16, seed=3)
            twins = Twins(backend, values, groups=[group], layouts=offsets)
            twins.step(2)
            twins.check(f"on {backend}, {state}, {weight}")
        twins = Twins(backend, tensors([5] * 700, torch.float32, seed=2))
        twins.step(2)
        twins.check(f"on {backend}, many")


def looks() -> None:
    """Segments that end where their tensor does, of few rows and of many."""
    for backend in ("cuda", "triton") if find_spec("triton") else ("cuda",):
        for stored in STORED:
            check_looks(backend, stored, "cuda", sizes=FEW_SIZES, steps=1)
        check_looks(backend, STORED[0], "cuda", sizes=(5,) * 700, steps=1)


def counts_and_sums() -> None:
    """Scalars prepared beside the table, and segments that end where their tensor does."""
    batch = OnGpu("float32")
    for _ in range(2):
        batch.step()
        batch.expect_counted()
    batch.check()
    for dtype in ("float32", "bfloat16", "float16"):
        for offset in range(3):
            total = Sum(random(SIZES, dtype, offset), dtype)
            total.enqueue()
            total.check()


def faulty_step(fault: str) -> None:
    """A launch on a row that claims one element too many, or on a gradient never written."""
    make = torch.empty if fault == "uninitialized" else torch.zeros
    streams = [make(1000, device=GPU), make(1000, device=GPU)]
    streams += [torch.zeros(1000, device=GPU) for _ in AdaMod.states]
    numel = 1001 if fault == "overrun" else 1000
    rows = torch.tensor([[*(stream.data_ptr() for stream in streams), numel, 0, 0]])
    scalars = torch.ones(1, len(AdaMod.Scalars._fields))
    addresses = (rows.data_ptr(), 1, scalars.data_ptr(), 1)
    stream = torch.cuda.current_stream().cuda_stream
    extension.cuda.step(AdaMod.name, "float32", *addresses, 1, GPU.index, stream)
    torch.cuda.synchronize()


if __name__ == "__main__":
    for fault in sys.argv[1:]:
        faulty_step(fault)
    if not sys.argv[1:]:
        steps()
        looks()
        counts_and_sums()
        print("all steps done")
