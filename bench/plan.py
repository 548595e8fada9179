"""What a run measures, in which order: what matters most comes first, for a run may be stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from adamod_fused.backends.base import dtype_name

from .contestants import Contestant
from .lists import LISTS, ParamList, size_sweep, tensor_sweep
from .measure import Effort

DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
DEFAULT_DTYPES = ("float32", "bfloat16")

LARGEST = {"cpu": 10**8, "cuda": 10**9}  # of the sweep over sizes

# Lists that targets are about (targets.py).
FIRST = {
    "cpu": ("small-1000", "single-50m", "gpt2-124m", "resnet50"),
    "cuda": ("gpt2-124m", "single-1g", "small-10000", "llama-3.2-1b"),
}
QUICK = ("small-1000", "resnet50")
QUICK_ELEMENTS, QUICK_TENSORS = 10**6, 10**3  # the largest of the sweeps

EFFORT = {"cpu": Effort(seconds=6), "cuda": Effort(seconds=4)}
QUICK_EFFORT = Effort(seconds=1)

MOST_COMPILED_SHAPES = 4
"""Distinct shapes in lists for contestants that compile, maybe for each of them and for long."""

CODED_LISTS = ("gpt2-124m", "single-50m", "single-1g", "resnet50", "moe")
"""Where ours in fewer bytes are measured: large tensors, real models, small tensors that are not so
small as to keep float32 states."""

MANY = 1_000
"""Tensors above which contestants that go one by one are not measured on a GPU."""


class Job(NamedTuple):
    """A list and dtype to measure."""

    params: ParamList
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.params.name} {dtype_name(self.dtype)}"


def catalogue() -> dict[str, ParamList]:
    """Every list by name, the sweeps' too."""
    sweeps = (*size_sweep(max(LARGEST.values())), *tensor_sweep())
    return LISTS | {params.name: params for params in sweeps}


def jobs(
    device_type: str, dtypes: Sequence[torch.dtype], names: Iterable[str] = (), quick: bool = False
) -> list[Job]:
    """Every list in ``names`` with every dtype; without names what a device is measured with.

    The sweeps are then in the first dtype alone, before anything is in another.
    """
    if names:
        return [Job(catalogue()[name], dtype) for dtype in dtypes for name in names]
    sweeps = [*size_sweep(LARGEST[device_type]), *tensor_sweep()]
    if quick:
        sweeps = [s for s in sweeps if s.numel <= QUICK_ELEMENTS and s.tensors <= QUICK_TENSORS]
        return [Job(params, dtypes[0]) for params in (*(LISTS[name] for name in QUICK), *sweeps)]
    here = [params for params in LISTS.values() if device_type in params.devices]
    first = [LISTS[name] for name in FIRST[device_type]]
    rest = [params for params in here if params not in first]
    return [
        *(Job(params, dtypes[0]) for params in (*first, *sweeps)),
        *(Job(params, dtype) for dtype in dtypes[1:] for params in first),
        *(Job(params, dtype) for dtype in dtypes for params in rest),
    ]


def effort(device_type: str, quick: bool) -> Effort:
    return QUICK_EFFORT if quick else EFFORT[device_type]


def unfit(
    contestant: Contestant, job: Job, device: torch.device, patient: bool = False
) -> str | None:
    """Why a contestant is not measured on a list and dtype; None where it is.

    ``patient`` lets those that compile for every shape have lists of many shapes, and ours in
    fewer bytes all lists.
    """
    refusal = contestant.refuses(device, job.dtype)
    tensors = job.params.tensors
    if refusal is None and contestant.one_by_one and device.type == "cuda" and tensors > MANY:
        refusal = f"it launches kernels for each of {tensors:,} tensors: a second for every step"
    if refusal is None and contestant.slow_for_each_shape and not patient:
        shapes = len(set(job.params.shapes))
        if shapes > MOST_COMPILED_SHAPES:
            refusal = f"{contestant.slow_start}; the list has {shapes} shapes"
    coded = not contestant.formats.are_plain
    if refusal is None and coded and not patient and job.params.name not in CODED_LISTS:
        refusal = f"unless it is asked for, it is measured on {', '.join(CODED_LISTS)} alone"
    return refusal
