"""The states of a block of elements, from their codes in memory and back, csrc/engine/codes.h.

Elements that share an exponent lie along ``AXIS`` of ``lanes``; ``blocks`` are where the exponents
of the first state lie, which the other states' follow. In one byte, a code of nine bits keeps its
upper one in the state before it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import codes, random_bits


@triton.jit
def load_states(
    NUM_STATES: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    BYTES: tl.constexpr,
    AXIS: tl.constexpr,
    state0_ptr,
    state1_ptr,
    state2_ptr,
    exponents_ptr,
    lanes,
    blocks,
    mask,
    block_mask,
):
    """The states in float32; with ``BYTES`` 4 there are no exponents."""
    state0 = tl.load(state0_ptr + lanes, mask=mask)
    state1 = tl.load(state1_ptr + lanes, mask=mask) if NUM_STATES > 1 else state0
    state2 = tl.load(state2_ptr + lanes, mask=mask) if NUM_STATES > 2 else state0
    if BYTES < 4:
        state0 = state0.to(tl.int32)
        state1 = state1.to(tl.int32)
        state2 = state2.to(tl.int32)
        if BYTES == 1:  # a code of nine bits has borrowed one of the state before
            if NUM_STATES > 1 and KIND1 == codes.SAFE_TOO_LARGE:
                state1 |= (state0 >> 7) << 8
                state0 &= 0x7F
            if NUM_STATES > 2 and KIND2 == codes.SAFE_TOO_LARGE:
                state2 |= (state1 >> 7) << 8
                state1 &= 0x7F
        base0 = load_bases(exponents_ptr, blocks, block_mask, AXIS)
        state0 = codes.decode(state0, base0, KIND0, BYTES)
        if NUM_STATES > 1:
            base1 = load_bases(exponents_ptr + 1, blocks, block_mask, AXIS)
            state1 = codes.decode(state1, base1, KIND1, BYTES)
        else:
            state1 = state0
        if NUM_STATES > 2:
            base2 = load_bases(exponents_ptr + 2, blocks, block_mask, AXIS)
            state2 = codes.decode(state2, base2, KIND2, BYTES)
        else:
            state2 = state0
    return state0, state1, state2


@triton.jit
def load_bases(exponents_ptr, blocks, block_mask, AXIS: tl.constexpr):
    """The bases of one state's blocks, to go with its elements."""
    exponents = tl.load(exponents_ptr + blocks, mask=block_mask).to(tl.int32)
    return tl.expand_dims(exponents << 23, AXIS)


@triton.jit
def encode_state(
    state,
    random,
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    AXIS: tl.constexpr,
    exponents_ptr,
    blocks,
    mask,
    block_mask,
):
    """The codes of a state's new values, once their exponents are stored."""
    if mask is not None:
        state = tl.where(mask, state, 0.0)
    base = codes.bases(state, KIND, BYTES, AXIS)
    tl.store(exponents_ptr + blocks, (base >> 23).to(tl.uint8), mask=block_mask)
    return codes.encode(state, tl.expand_dims(base, AXIS), random, KIND, BYTES)


@triton.jit
def draw(hashed, step, STREAM: tl.constexpr):
    """A state's random bits; where there is no hash, those that round to the nearest."""
    nearest = tl.full([1, 1], 1 << 31, tl.uint32)
    return nearest if hashed is None else random_bits.draw(hashed, step, STREAM)


@triton.jit
def store_states(
    NUM_STATES: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    BYTES: tl.constexpr,
    AXIS: tl.constexpr,
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
):
    """The inverse of ``load_states``; codes are rounded to the nearest if ``hashed`` is None."""
    if BYTES < 4:
        random = draw(hashed, step, 0)
        state0 = encode_state(
            state0, random, KIND0, BYTES, AXIS, exponents_ptr, blocks, mask, block_mask
        )
        if NUM_STATES > 1:
            random = draw(hashed, step, 1)
            state1 = encode_state(
                state1, random, KIND1, BYTES, AXIS, exponents_ptr + 1, blocks, mask, block_mask
            )
        if NUM_STATES > 2:
            random = draw(hashed, step, 2)
            state2 = encode_state(
                state2, random, KIND2, BYTES, AXIS, exponents_ptr + 2, blocks, mask, block_mask
            )
        if BYTES == 1:
            if NUM_STATES > 1 and KIND1 == codes.SAFE_TOO_LARGE:
                state0 |= (state1 >> 8) << 7
            if NUM_STATES > 2 and KIND2 == codes.SAFE_TOO_LARGE:
                state1 |= (state2 >> 8) << 7
    tl.store(state0_ptr + lanes, state0.to(state0_ptr.dtype.element_ty), mask=mask)
    if NUM_STATES > 1:
        tl.store(state1_ptr + lanes, state1.to(state1_ptr.dtype.element_ty), mask=mask)
    if NUM_STATES > 2:
        tl.store(state2_ptr + lanes, state2.to(state2_ptr.dtype.element_ty), mask=mask)
