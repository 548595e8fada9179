"""Random bits for stochastic rounding, operation for operation csrc/engine/random_bits.h."""

from __future__ import annotations

import triton
import triton.language as tl

PARAM_STREAM = tl.constexpr(3)  # those before it are the states'

WEYL = tl.constexpr((0x9E3779B9, 0x6A09E667, 0xBB67AE85, 0x4D8400FD))


@triton.jit
def hash_index(low, high, key):
    """Of elements whose index is ``high`` and ``low``, uint32, in a tensor of ``key``, int64."""
    h = low * tl.full((), 0x9E3779B1, tl.uint32) + key.to(tl.uint32)
    h = (h ^ (h >> 16)) * tl.full((), 0x21F0AAAD, tl.uint32)
    h += high * tl.full((), 0x85EBCA6B, tl.uint32) + (key >> 32).to(tl.uint32)
    h = (h ^ (h >> 15)) * tl.full((), 0x735A2D97, tl.uint32)
    return h ^ (h >> 15)


@triton.jit
def draw(hashed, step, STREAM: tl.constexpr):
    """The 32 bits of a stream at ``step``, uint32."""
    if STREAM == PARAM_STREAM:
        mixed = (hashed ^ (hashed >> 16)) * tl.full((), 0x2C1B3C6D, tl.uint32)
        word = mixed ^ (mixed >> 15)
    elif STREAM > 0:
        top = (hashed << (32 - 8 * STREAM)) & tl.full((), 0xFF000000, tl.uint32)
        word = (hashed & tl.full((), 0x00FFFFFF, tl.uint32)) | top
    else:
        word = hashed
    return word + step * tl.full((), WEYL.value[STREAM], tl.uint32)
