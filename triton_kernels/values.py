"""A parameter's states from codes to values and back, csrc/engine/coded_states.h: one launch.

What 16 bits hold goes through memory as integers, so that its bits are those of every other
backend, of NaN too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .coded_states import load_states, store_states
from .codes import BLOCK as SHARED

BLOCK_SIZE = 1024  # elements of a program

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def store_value(value_ptr, lanes, mask, state):
    """Float32, or the upper halves of it, which are bfloat16."""
    pattern = state.to(tl.uint32, bitcast=True)
    if value_ptr.dtype.element_ty == tl.uint16:
        tl.store(value_ptr + lanes, (pattern >> 16).to(tl.uint16), mask=mask)
    else:
        tl.store(value_ptr + lanes, state, mask=mask)


@triton.jit
def load_value(value_ptr, lanes, mask):
    """The inverse of ``store_value``; 0 under the mask."""
    value = tl.load(value_ptr + lanes, mask=mask, other=0)
    if value_ptr.dtype.element_ty == tl.uint16:
        value = (value.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@triton.jit(do_not_specialize=["numel"])
def decode_block(
    state0_ptr,
    state1_ptr,
    state2_ptr,
    exponents_ptr,
    value0_ptr,
    value1_ptr,
    value2_ptr,
    numel,
    NUM_STATES: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the values of the block of elements of its number."""
    blocks = tl.program_id(0).to(tl.int64) * (BLOCK // SHARED) + tl.arange(0, BLOCK // SHARED)
    lanes = blocks[:, None] * SHARED + tl.arange(0, SHARED)[None, :]
    mask = lanes < numel
    state0, state1, state2 = load_states(
        NUM_STATES,
        KIND0,
        KIND1,
        KIND2,
        BYTES,
        1,
        state0_ptr,
        state1_ptr,
        state2_ptr,
        exponents_ptr,
        lanes,
        blocks * NUM_STATES,
        mask,
        blocks * SHARED < numel,
    )
    store_value(value0_ptr, lanes, mask, state0)
    if NUM_STATES > 1:
        store_value(value1_ptr, lanes, mask, state1)
    if NUM_STATES > 2:
        store_value(value2_ptr, lanes, mask, state2)


@triton.jit(do_not_specialize=["numel"])
def encode_block(
    state0_ptr,
    state1_ptr,
    state2_ptr,
    exponents_ptr,
    value0_ptr,
    value1_ptr,
    value2_ptr,
    numel,
    NUM_STATES: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the codes and exponents of the block of elements of its number."""
    blocks = tl.program_id(0).to(tl.int64) * (BLOCK // SHARED) + tl.arange(0, BLOCK // SHARED)
    lanes = blocks[:, None] * SHARED + tl.arange(0, SHARED)[None, :]
    mask = lanes < numel
    state0 = load_value(value0_ptr, lanes, mask)
    state1 = load_value(value1_ptr, lanes, mask) if NUM_STATES > 1 else state0
    state2 = load_value(value2_ptr, lanes, mask) if NUM_STATES > 2 else state0
    store_states(
        NUM_STATES,
        KIND0,
        KIND1,
        KIND2,
        BYTES,
        1,
        state0_ptr,
        state1_ptr,
        state2_ptr,
        exponents_ptr,
        lanes,
        blocks * NUM_STATES,
        mask,
        blocks * SHARED < numel,
        None,
        None,
        state0,
        state1,
        state2,
    )


def constants(kinds: Sequence[int], num_bytes: int) -> dict[str, Any]:
    """The kernels' compile-time arguments: one compilation for each."""
    padded = [*kinds, *[None] * (3 - len(kinds))]
    return {
        "NUM_STATES": len(kinds),
        **{f"KIND{k}": kind for k, kind in enumerate(padded)},
        "BYTES": num_bytes,
        "BLOCK": BLOCK_SIZE,
    }


def decode(
    kinds: Sequence[int], coded: Sequence[Tensor], exponents: Tensor, values: Sequence[Tensor]
) -> None:
    """Writes the values of codes, on the current stream of their device.

    Args:
        kinds: of each state, numbers of ``Values``.
        coded: uint8 or int16 ``[numel]`` each.
        exponents: uint8 ``[blocks, len(kinds)]``.
        values: bfloat16 for uint8 and float32 for int16, ``[numel]`` each.
    """
    _launch(decode_block, kinds, coded, exponents, values)


def encode(
    kinds: Sequence[int], values: Sequence[Tensor], coded: Sequence[Tensor], exponents: Tensor
) -> None:
    """The inverse of ``decode``, rounded to the nearest; values are float32 or all bfloat16."""
    _launch(encode_block, kinds, coded, exponents, values)


def _launch(
    kernel: Any,
    kinds: Sequence[int],
    coded: Sequence[Tensor],
    exponents: Tensor,
    values: Sequence[Tensor],
) -> None:
    numel = len(coded[0])
    if numel == 0:
        return
    states, floats = ([_unsigned(t) for t in _three(tensors)] for tensors in (coded, values))
    with torch.cuda.device_of(exponents):
        kernel[(triton.cdiv(numel, BLOCK_SIZE),)](
            *states,
            exponents,
            *floats,
            numel,
            **constants(kinds, coded[0].dtype.itemsize),
            **OPTIONS,
        )


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The first again where there are fewer than three: it is not read as another state."""
    return [*tensors, *[tensors[0]] * (3 - len(tensors))]


def _unsigned(tensor: Tensor) -> Tensor:
    """A view as uint16 of a tensor with 16-bit elements; any other tensor as it is."""
    return tensor.view(torch.uint16) if tensor.dtype.itemsize == 2 else tensor
