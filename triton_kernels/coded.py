"""The Triton engine for states and weights that are not plain floats: how memory moves.

As ``engine`` does, one program updates one chunk of one tensor in blocks of it, in 128-bit accesses
where a block is whole and all streams begin at a 16-byte boundary, else under a mask. Elements that
share an exponent lie along one axis of a block, so that a few neighbouring threads, or one warp,
hold them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import random_bits, weights
from .coded_states import load_states, store_states
from .codes import BLOCK as SHARED
from .rules import RULES, apply_update
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
    find_row,
    skips,
)

NUM_WARPS = 4
MASKED_BLOCK_SIZE = 512  # elements
STATE_BYTES = {"fp32": 4, "16bit": 2, "8bit": 1}
STATE_DTYPES = {4: tl.float32, 2: tl.uint16, 1: tl.uint8}

# Columns of the other half of the table, csrc/engine/row.h: of Coded.
CODED_SIZE = tl.constexpr(4)
EXPONENTS = tl.constexpr(0)
REMAINDERS = tl.constexpr(1)
FIRST_INDEX = tl.constexpr(2)
KEY = tl.constexpr(3)


@triton.jit
def update_blocks(
    UPDATE: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    BYTES: tl.constexpr,
    WEIGHT_FORMAT: tl.constexpr,
    AXIS: tl.constexpr,
    scalars,
    grad_scale,
    step,
    param_ptr,
    grad_ptr,
    state0_ptr,
    state1_ptr,
    state2_ptr,
    remainder_ptr,
    exponents_ptr,
    lanes,
    blocks,
    mask,
    block_mask,
    low,
    high,
    key,
):
    """Load, update and store the elements ``lanes`` past the addresses; ``mask`` None is all.

    ``lanes`` are a matrix, along whose ``AXIS`` lie those that share the exponents at ``blocks``.
    ``low`` and ``high`` are the halves of the elements' indices.
    """
    param = tl.load(param_ptr + lanes, mask=mask)
    if WEIGHT_FORMAT == "split":
        param = weights.joined(param, tl.load(remainder_ptr + lanes, mask=mask))
    elif WEIGHT_FORMAT == "stochastic":
        param = weights.joined(param, tl.zeros_like(param))
    else:
        param = param.to(tl.float32)
    grad = tl.load(grad_ptr + lanes, mask=mask).to(tl.float32)
    if grad_scale is not None:
        grad *= grad_scale
    state0, state1, state2 = load_states(
        NUM_STATES,
        KIND0,
        KIND1,
        KIND2,
        BYTES,
        AXIS,
        state0_ptr,
        state1_ptr,
        state2_ptr,
        exponents_ptr,
        lanes,
        blocks,
        mask,
        block_mask,
    )

    # Not once for all blocks: a register more is one too many, and the scalars are in a cache.
    weight_decay_rate = tl.load(scalars + (NUM_SCALARS - 2))
    update, state0, state1, state2 = UPDATE(scalars, grad, state0, state1, state2)
    param = apply_update(weight_decay_rate, param, update)

    hashed = random_bits.hash_index(low, high, key)
    if WEIGHT_FORMAT == "split":
        param, remainder = weights.split(param)
        tl.store(remainder_ptr + lanes, remainder, mask=mask)
    elif WEIGHT_FORMAT == "stochastic":
        random = random_bits.draw(hashed, step, random_bits.PARAM_STREAM)
        param = weights.stochastically_rounded(param, random)
    tl.store(param_ptr + lanes, param.to(param_ptr.dtype.element_ty), mask=mask)
    store_states(
        NUM_STATES,
        KIND0,
        KIND1,
        KIND2,
        BYTES,
        AXIS,
        state0_ptr,
        state1_ptr,
        state2_ptr,
        exponents_ptr,
        lanes,
        blocks,
        mask,
        block_mask,
        hashed,
        step,
        state0,
        state1,
        state2,
    )


@triton.jit(do_not_specialize=["num_rows"])
def update_coded_chunk(
    rows,
    coded,
    scalars,
    num_rows,
    control,
    UPDATE: tl.constexpr,
    UPDATE_KEY: tl.constexpr,
    NUM_STATES: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
    DTYPE: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    BYTES: tl.constexpr,
    WEIGHT_FORMAT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED_BLOCK: tl.constexpr,
):
    """One program: the chunk of its number in the whole table."""
    if skips(control):
        return
    grad_scale = None if control is None else tl.load(control + GRAD_SCALE)

    chunk = tl.program_id(0)
    row_index = find_row(rows, num_rows, chunk, ROW_SIZE, FIRST_CHUNK)
    row = rows + row_index * ROW_SIZE
    coded += row_index * CODED_SIZE
    numel = tl.load(row + NUMEL)
    start = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK
    scalars += tl.load(row + SCALARS) * NUM_SCALARS
    step = tl.load(scalars + (NUM_SCALARS - 1)).to(tl.int64).to(tl.uint32)
    first_index = tl.load(coded + FIRST_INDEX)
    key = tl.load(coded + KEY)

    param = tl.load(row + PARAM)
    grad = tl.load(row + GRAD)
    state0 = tl.load(row + STATE0)
    state1 = tl.load(row + STATE1) if NUM_STATES > 1 else state0
    state2 = tl.load(row + STATE2) if NUM_STATES > 2 else state0
    remainder = tl.load(coded + REMAINDERS) if WEIGHT_FORMAT == "split" else param
    aligned = (param | grad | state0 | state1 | state2 | remainder) & 15 == 0

    param_ptr = param.to(tl.pointer_type(PARAM_DTYPE))
    grad_ptr = grad.to(tl.pointer_type(DTYPE))
    state0_ptr = state0.to(tl.pointer_type(STATE_DTYPE))
    state1_ptr = state1.to(tl.pointer_type(STATE_DTYPE))
    state2_ptr = state2.to(tl.pointer_type(STATE_DTYPE))
    remainder_ptr = remainder.to(tl.pointer_type(tl.int16))
    exponents_ptr = tl.load(coded + EXPONENTS).to(tl.pointer_type(tl.uint8))

    inside = tl.arange(0, SHARED)
    blocks = tl.arange(0, BLOCK // SHARED)
    lanes = blocks[:, None] * SHARED + inside[None, :]
    # Another shape for the masked path gives it another layout, as in engine.update_chunk.
    masked_blocks = tl.arange(0, MASKED_BLOCK // SHARED)
    masked_lanes = masked_blocks[None, :] * SHARED + inside[:, None]

    end = tl.minimum(start + CHUNK, numel)
    while start < end:  # not range: the interpreter would make start a Python int, int32 here
        first = first_index + start
        high = first >> 32
        one_high = (first + (BLOCK - 1)) >> 32 == high
        block_exponents_ptr = exponents_ptr + start // SHARED * NUM_STATES
        # After a masked block, the next whole one may not fit into this chunk.
        is_whole = aligned & (start + BLOCK <= end) & one_high
        if is_whole:
            update_blocks(
                UPDATE,
                NUM_STATES,
                NUM_SCALARS,
                KIND0,
                KIND1,
                KIND2,
                BYTES,
                WEIGHT_FORMAT,
                1,
                scalars,
                grad_scale,
                step,
                tl.multiple_of(param_ptr + start, 16),
                tl.multiple_of(grad_ptr + start, 16),
                tl.multiple_of(state0_ptr + start, 16),
                tl.multiple_of(state1_ptr + start, 16),
                tl.multiple_of(state2_ptr + start, 16),
                tl.multiple_of(remainder_ptr + start, 16),
                block_exponents_ptr,
                lanes,
                blocks * NUM_STATES,
                None,
                None,
                first.to(tl.uint32) + lanes.to(tl.uint32),
                high.to(tl.uint32),
                key,
            )
        else:
            update_blocks(
                UPDATE,
                NUM_STATES,
                NUM_SCALARS,
                KIND0,
                KIND1,
                KIND2,
                BYTES,
                WEIGHT_FORMAT,
                0,
                scalars,
                grad_scale,
                step,
                param_ptr + start,
                grad_ptr + start,
                state0_ptr + start,
                state1_ptr + start,
                state2_ptr + start,
                remainder_ptr + start,
                block_exponents_ptr,
                masked_lanes,
                masked_blocks * NUM_STATES,
                start + masked_lanes < end,
                start + masked_blocks * SHARED < end,
                (first + masked_lanes).to(tl.uint32),
                ((first + masked_lanes) >> 32).to(tl.uint32),
                key,
            )
        start += tl.where(is_whole, BLOCK, MASKED_BLOCK)


def block_size(dtype: torch.dtype, state_format: str) -> int:
    """Elements of a block whose threads have 128 bits of the narrowest stream each."""
    return 32 * NUM_WARPS * 16 // min(STATE_BYTES[state_format], dtype.itemsize)


def constants(
    rule: str, dtype: torch.dtype, formats: tuple[str, str], num_scalars: int
) -> dict[str, Any]:
    """The kernel's compile-time arguments: one compilation for each."""
    state_format, weight_format = formats
    num_bytes = STATE_BYTES[state_format]
    update, num_states, values = RULES[rule].update, RULES[rule].num_states, RULES[rule].values
    kinds = [value.value for value in values] + [None] * (3 - len(values))
    return {
        "UPDATE": update,
        "UPDATE_KEY": getattr(update, "cache_key", None),  # as engine.constants
        "NUM_STATES": num_states,
        **{f"KIND{k}": kind for k, kind in enumerate(kinds)},
        "NUM_SCALARS": num_scalars,
        "DTYPE": DTYPES[dtype],
        "PARAM_DTYPE": DTYPES[dtype] if weight_format == "plain" else tl.int16,
        "STATE_DTYPE": STATE_DTYPES[num_bytes],
        "BYTES": num_bytes,
        "WEIGHT_FORMAT": weight_format,
        "CHUNK": CHUNK_SIZE,
        "BLOCK": block_size(dtype, state_format),
        "MASKED_BLOCK": MASKED_BLOCK_SIZE,
    }


# Without contraction every operation of a rule rounds once.
OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}


def step(
    rule: str,
    dtype: torch.dtype,
    formats: tuple[str, str],
    rows: Tensor,
    coded: Tensor,
    scalars: Tensor,
    num_chunks: int,
    control: Tensor | None = None,
) -> None:
    """As ``engine.step``; ``formats`` are those of states and of weights."""
    with torch.cuda.device_of(rows):
        update_coded_chunk[(num_chunks,)](
            rows,
            coded,
            scalars,
            len(rows),
            control,
            **constants(rule, dtype, formats, scalars.shape[1]),
            **OPTIONS,
        )
