"""The sum of the squares of all gradients of a table, in float64: two launches.

The order of additions is that of csrc/engine/row.h, so the bits are those of every other backend.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .table import DTYPES, find_row

# Columns of a row of the table.
ROW_SIZE = tl.constexpr(3)
GRAD = tl.constexpr(0)
NUMEL = tl.constexpr(1)
FIRST_SEGMENT = tl.constexpr(2)

SEGMENT_SIZE = tl.constexpr(16384)
LANES = tl.constexpr(1024)
HALVINGS = tl.constexpr(10)  # from LANES to one
LOADS_AT_ONCE = tl.constexpr(8)  # of the partial sums: one program waits for them all

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # 128 bits a thread of 16-bit gradients


@triton.jit
def halved(lanes, LANES: tl.constexpr, HALVINGS: tl.constexpr):
    """The sum of the lanes, their upper half added to the lower until one is left: ``[1]``."""
    # Each reduction adds two numbers, so the order is written here and not left to Triton.
    for halving in tl.static_range(1, HALVINGS + 1):
        lanes = tl.sum(tl.reshape(lanes, [2, LANES >> halving]), axis=0)
    return lanes


@triton.jit
def add_squares(grad_ptr, lanes, left, WHOLE: tl.constexpr):
    """In each lane the squares of its elements among the ``left`` past the address, in turn."""
    sums = tl.zeros(lanes.shape, tl.float64)
    for start in tl.static_range(0, SEGMENT_SIZE, LANES):
        if WHOLE:
            grad = tl.load(grad_ptr + (start + lanes))
        else:
            grad = tl.load(grad_ptr + (start + lanes), mask=start + lanes < left, other=0.0)
        grad = grad.to(tl.float64)
        # The square is exact, so the sum is rounded once, fused or not; fused is the faster where
        # a GPU has few units for float64.
        sums = tl.fma(grad, grad, sums)
    return sums


@triton.jit(do_not_specialize=["num_rows"])
def sum_segment(rows, num_rows, partials, DTYPE: tl.constexpr):
    """One program: the sum of the segment of its number in the whole table."""
    segment = tl.program_id(0)
    row = rows + find_row(rows, num_rows, segment, ROW_SIZE, FIRST_SEGMENT) * ROW_SIZE
    grad = tl.load(row + GRAD)
    start = (segment - tl.load(row + FIRST_SEGMENT)) * SEGMENT_SIZE
    left = tl.load(row + NUMEL) - start
    grad_ptr = grad.to(tl.pointer_type(DTYPE)) + start

    partial = partials + segment + tl.arange(0, 1)
    if (grad & 15 == 0) & (left >= SEGMENT_SIZE):
        grad_ptr = tl.multiple_of(grad_ptr, 16)
        tl.store(
            partial, halved(add_squares(grad_ptr, tl.arange(0, LANES), left, True), LANES, HALVINGS)
        )
    else:
        # Of another shape, for a layout of its own: as engine.update_chunk.
        lanes = tl.arange(0, LANES)[None, :]
        tl.store(partial, halved(add_squares(grad_ptr, lanes, left, False), LANES, HALVINGS))


@triton.jit(do_not_specialize=["num_segments"])
def sum_partials(partials, num_segments, out):
    """One program for all: the sum of the segments' sums."""
    lanes = tl.arange(0, LANES)
    sums = tl.zeros([LANES], tl.float64)
    start = tl.full([], 0, tl.int64)
    while start < num_segments:
        for block in tl.static_range(LOADS_AT_ONCE):
            segment = start + (block * LANES + lanes)
            sums += tl.load(partials + segment, mask=segment < num_segments, other=0.0)
        start += LOADS_AT_ONCE * LANES
    tl.store(out + tl.arange(0, 1), halved(sums, LANES, HALVINGS))


def sum_squares(dtype: torch.dtype, grad_rows: Tensor, num_segments: int) -> Tensor:
    """The sum of the squares of all gradients of the table, on the current stream of its device.

    Args:
        dtype: of the gradients: float32, bfloat16 or float16.
        grad_rows: the table, int64 ``[num_rows, 3]``: ``GradRow`` in csrc/engine/row.h.
        num_segments: of the whole table.

    Returns:
        float64, without dimensions, on the table's device.
    """
    partials = grad_rows.new_empty(num_segments, dtype=torch.float64)
    out = grad_rows.new_empty((), dtype=torch.float64)
    with torch.cuda.device_of(grad_rows):
        if num_segments:
            sum_segment[(num_segments,)](
                grad_rows, len(grad_rows), partials, DTYPES[dtype], **OPTIONS
            )
        sum_partials[(1,)](partials, num_segments, out, **OPTIONS)
    return out
