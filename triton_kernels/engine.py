"""The Triton engine: one launch over a table of tensors. How memory moves, and no mathematics.

One program updates one chunk of one tensor. It finds its row in the table, then walks the chunk in
blocks. A chunk starts ``head`` elements late, where the row's tensors all reach a 16-byte boundary:
from there on, whole blocks go in 128-bit accesses without masks. What is left (the head, the tail,
a row whose tensors are never aligned together) goes element by element under a mask.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .coded import step as coded_step
from .prepare import prepare
from .rules import RULES, apply_update
from .sum_squares import sum_squares
from .table import (
    CHUNK_SIZE,
    DTYPES,
    FIRST_CHUNK,
    GRAD,
    GRAD_SCALE,
    NUMEL,
    PARAM,
    ROW_SIZE,
    SCALARS,
    STATE0,
    STATE1,
    STATE2,
    Matrix,
    find_row,
    skips,
    upload,
)

__all__ = ["CHUNK_SIZE", "DTYPES", "Matrix", "prepare", "step", "sum_squares", "upload"]

BLOCK_SIZE = 1024
NUM_WARPS = 4  # with 32 lanes: 8 elements a thread, 128 bits of the narrowest stream


@triton.jit
def update_block(
    UPDATE: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
    scalars,
    grad_scale,
    param_ptr,
    grad_ptr,
    state0_ptr,
    state1_ptr,
    state2_ptr,
    lanes,
    mask,
):
    """Load, update and store the elements ``lanes`` past the addresses; ``mask`` None is all."""
    param = tl.load(param_ptr + lanes, mask=mask).to(tl.float32)
    grad = tl.load(grad_ptr + lanes, mask=mask).to(tl.float32)
    if grad_scale is not None:
        grad *= grad_scale
    state0 = tl.load(state0_ptr + lanes, mask=mask)
    state1 = tl.load(state1_ptr + lanes, mask=mask) if NUM_STATES > 1 else state0
    state2 = tl.load(state2_ptr + lanes, mask=mask) if NUM_STATES > 2 else state0

    # Not once for all blocks: a register more is one too many, and the scalars are in a cache.
    weight_decay_rate = tl.load(scalars + (NUM_SCALARS - 2))
    update, state0, state1, state2 = UPDATE(scalars, grad, state0, state1, state2)
    param = apply_update(weight_decay_rate, param, update)

    tl.store(param_ptr + lanes, param.to(param_ptr.dtype.element_ty), mask=mask)
    tl.store(state0_ptr + lanes, state0, mask=mask)
    if NUM_STATES > 1:
        tl.store(state1_ptr + lanes, state1, mask=mask)
    if NUM_STATES > 2:
        tl.store(state2_ptr + lanes, state2, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def update_chunk(
    rows,
    scalars,
    num_rows,
    control,
    UPDATE: tl.constexpr,
    UPDATE_KEY: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
    DTYPE: tl.constexpr,
    ITEMSIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the chunk of its number in the whole table."""
    if skips(control):
        return
    grad_scale = None if control is None else tl.load(control + GRAD_SCALE)

    chunk = tl.program_id(0)
    row = rows + find_row(rows, num_rows, chunk, ROW_SIZE, FIRST_CHUNK) * ROW_SIZE
    numel = tl.load(row + NUMEL)
    index = chunk - tl.load(row + FIRST_CHUNK)
    scalars += tl.load(row + SCALARS) * NUM_SCALARS

    param = tl.load(row + PARAM)
    grad = tl.load(row + GRAD)
    state0 = tl.load(row + STATE0)
    state1 = tl.load(row + STATE1) if NUM_STATES > 1 else state0
    state2 = tl.load(row + STATE2) if NUM_STATES > 2 else state0

    head = (-param & 15) // ITEMSIZE
    low_bits = grad + head * ITEMSIZE
    low_bits |= (state0 + head * 4) | (state1 + head * 4) | (state2 + head * 4)
    congruent = low_bits & 15 == 0
    head = tl.where(congruent, head, 0)

    param_ptr = param.to(tl.pointer_type(DTYPE))
    grad_ptr = grad.to(tl.pointer_type(DTYPE))
    state0_ptr = state0.to(tl.pointer_type(tl.float32))
    state1_ptr = state1.to(tl.pointer_type(tl.float32))
    state2_ptr = state2.to(tl.pointer_type(tl.float32))

    start = index * CHUNK + head
    end = tl.minimum(start + CHUNK, numel)
    # The first chunk takes the head too, as the end of a block that begins before the tensor.
    start = tl.where((index == 0) & (head > 0), head - BLOCK, start)
    while start < end:  # not range: the interpreter would make start a Python int, int32 here
        if congruent & (start >= 0) & (start + BLOCK <= numel):
            update_block(
                UPDATE,
                NUM_STATES,
                NUM_SCALARS,
                scalars,
                grad_scale,
                tl.multiple_of(param_ptr + start, 16),
                tl.multiple_of(grad_ptr + start, 16),
                tl.multiple_of(state0_ptr + start, 16),
                tl.multiple_of(state1_ptr + start, 16),
                tl.multiple_of(state2_ptr + start, 16),
                tl.arange(0, BLOCK),
                None,
            )
        else:
            # Of another shape than above: Triton gives the accesses of one shape one layout, and
            # the vectors' would spread a warp's single elements over four times the cache lines.
            lanes = tl.arange(0, BLOCK)[None, :]
            element = start + lanes
            update_block(
                UPDATE,
                NUM_STATES,
                NUM_SCALARS,
                scalars,
                grad_scale,
                param_ptr + start,
                grad_ptr + start,
                state0_ptr + start,
                state1_ptr + start,
                state2_ptr + start,
                lanes,
                (element >= 0) & (element < numel),
            )
        start += BLOCK


def constants(rule: str, dtype: torch.dtype, num_scalars: int) -> dict[str, Any]:
    """The kernel's compile-time arguments for params of ``dtype``: one compilation for each."""
    update = RULES[rule].update
    return {
        "UPDATE": update,
        # Triton 3.2 leaves the source of a function handed over out of its disk cache's key.
        "UPDATE_KEY": getattr(update, "cache_key", None),
        "NUM_STATES": RULES[rule].num_states,
        "NUM_SCALARS": num_scalars,
        "DTYPE": DTYPES[dtype],
        "ITEMSIZE": dtype.itemsize,
        "CHUNK": CHUNK_SIZE,
        "BLOCK": BLOCK_SIZE,
    }


# Without contraction every operation of a rule rounds once.
OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}


def step(
    rule: str,
    dtype: torch.dtype,
    rows: Tensor,
    scalars: Tensor,
    num_chunks: int,
    control: Tensor | None = None,
    coded: Tensor | None = None,
    state_format: str = "fp32",
    weight_format: str = "plain",
) -> None:
    """One step of ``rule`` on every tensor of the table, on the current stream of its device.

    Args:
        rule: a name in ``rules.RULES``.
        dtype: of params and grads: float32, bfloat16 or float16.
        rows: the table, int64 ``[num_rows, 8]``, as in csrc/engine/row.h.
        scalars: the rule's scalars, float32 ``[num_scalar_rows, num_scalars]``.
        num_chunks: of the whole table, in units of ``CHUNK_SIZE``.
        control: ``Control``, float32 ``[2]``: a factor of every gradient, and not 0 where nothing
            is to be done.
        coded: the other half of a table whose states or weights are not plain floats: int64
            ``[num_rows, 4]``, ``Coded`` in csrc/engine/row.h. Without it states are float32.
        state_format: of that half, a name in adamod_fused/formats.py.
        weight_format: likewise.
    """
    if coded is not None:
        formats = (state_format, weight_format)
        coded_step(rule, dtype, formats, rows, coded, scalars, num_chunks, control)
        return
    with torch.cuda.device_of(rows):
        update_chunk[(num_chunks,)](
            rows, scalars, len(rows), control, **constants(rule, dtype, scalars.shape[1]), **OPTIONS
        )
