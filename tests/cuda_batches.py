"""Batches for the CUDA engine on the host: tensors between guard zones, and what they should hold.

For tests of csrc/engine/cuda.cu compiled by g++ (emulation/cuda_runtime.h).
"""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

import numpy as np
import torch
from helpers import assert_same_bits

from adamod_fused.reference import AdaMod, stepped

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STREAMS = ("param", "grad", *AdaMod.states)

# The kernel parameter holds 32,764 bytes: 32 rows of scalars, then rows of 64 bytes and the count.
ROWS_BY_VALUE = (32764 - 8 - 32 * 4 * len(AdaMod.Scalars._fields)) // 64
SCALARS_BY_VALUE = 32

HYPERPARAMETERS = {  # none at its default
    "lr": 3e-3,
    "betas": (0.8, 0.99),
    "beta3": 0.97,
    "eps": 1e-6,
    "weight_decay": 0.1,
    "variant": "paper",
    "maximize": True,
}

GUARD_BYTES = 256
GUARD = 0xA5


def scalars_at(step, **changes):
    """Scalars of one step as the kernels see them, rounded to float32."""
    row = AdaMod.prepare(step, **(HYPERPARAMETERS | changes))
    return AdaMod.Scalars(*np.array(row, np.float32).tolist())


def random_values(numel, dtype, generator):
    """Values of all magnitudes, with what is rare in float: zeros, subnormals, inf, NaN."""
    exponent = torch.rand(numel, generator=generator) * 24 - 18
    values = torch.randn(numel, generator=generator) * 10**exponent
    special = torch.tensor([0.0, -0.0, 1e-41, -1e-7, 3e38, torch.inf, -torch.inf, torch.nan])
    chosen = special[torch.randint(len(special), (numel,), generator=generator)]
    rare = torch.rand(numel, generator=generator) < 0.01
    return torch.where(rare, chosen, values).to(dtype)


class Guarded:
    """A tensor between guard zones, ``offset`` elements after a 64-byte boundary."""

    def __init__(self, values, offset):
        size = values.numel() * values.element_size()
        self.arena = np.full(size + 2 * GUARD_BYTES + 64 + 64, GUARD, np.uint8)
        start = -self.arena.ctypes.data % 64 + GUARD_BYTES + offset * values.element_size()
        self.inside = slice(start, start + size)
        self.address = self.arena.ctypes.data + start
        self.tensor = torch.from_numpy(self.arena[self.inside]).view(values.dtype)
        self.tensor.copy_(values)

    def guards_intact(self):
        outside = (self.arena[: self.inside.start], self.arena[self.inside.stop :])
        return all((zone == GUARD).all() for zone in outside)


class Batch:
    """Tensors with their table, and beside them the values that the reference says."""

    enqueued: ClassVar[list[Batch]] = []  # their memory has to stay until the queue is empty

    def __init__(self, engine, dtype, sizes, offsets=(0,) * 5, scalar_of_row=None, seed=0):
        self.engine, self.dtype, self.offsets = engine, dtype, offsets
        self.scalar_of_row = scalar_of_row or [0] * len(sizes)
        self.generator = torch.Generator().manual_seed(seed)
        dtypes = (DTYPES[dtype], DTYPES[dtype], *(torch.float32,) * len(AdaMod.states))
        self.tensors = []
        for numel in sizes:
            values = [random_values(numel, d, self.generator) for d in dtypes[:2]]
            values += [torch.zeros(numel) for _ in AdaMod.states]
            self.tensors.append([Guarded(*pair) for pair in zip(values, offsets, strict=True)])
        self.expected = [[g.tensor.clone() for g in guarded] for guarded in self.tensors]

        chunks = [-(-numel // engine.chunk_size) for numel in sizes]
        first = [0, *accumulate(chunks)]
        self.num_chunks = first.pop()
        rows = [
            [*(g.address for g in guarded), *rest]
            for guarded, *rest in zip(self.tensors, sizes, first, self.scalar_of_row, strict=True)
        ]
        self.rows = np.array(rows, np.int64)

    def new_grads(self):
        for guarded, expected in zip(self.tensors, self.expected, strict=True):
            grad = guarded[1].tensor
            grad.copy_(random_values(grad.numel(), grad.dtype, self.generator))
            expected[1] = grad.clone()

    def enqueue(self, scalars, device=0, stream=0, control=0):
        """Hand the batch to the engine, in arrays that are gone right afterwards."""
        self.enqueued.append(self)
        rows = self.rows.copy()
        rows_of_scalars = np.array(scalars, np.float32)
        counts = (len(rows_of_scalars), self.num_chunks, device, stream)
        addresses = (rows.ctypes.data, len(rows), rows_of_scalars.ctypes.data)
        self.engine.step("adamod", self.dtype, *addresses, *counts, control)
        rows[:] = rows_of_scalars[:] = -1

    def expect(self, scalars, grad_scale=1.0):
        """Move the expected values on by one step."""
        for expected, index in zip(self.expected, self.scalar_of_row, strict=True):
            param, grad, *states = (t.float() for t in expected)
            new = stepped(AdaMod, scalars[index], param, grad * grad_scale, *states)
            expected[0] = new[0].to(expected[0].dtype)
            expected[2:] = new[1:]

    def check(self):
        for row, (guarded, expected) in enumerate(zip(self.tensors, self.expected, strict=True)):
            for name, g, e in zip(STREAMS, guarded, expected, strict=True):
                where = f"{name} of row {row}, {e.numel()} elements, offsets {self.offsets}"
                assert_same_bits(g.tensor, e, where)
                assert g.guards_intact(), f"a guard zone of {where}"


def run_steps(batch, runtime, steps=3):
    for step in range(1, steps + 1):
        batch.new_grads()
        scalars = [scalars_at(step)]
        batch.enqueue(scalars)
        batch.expect(scalars)
        runtime.emulation_synchronize()
        batch.check()
