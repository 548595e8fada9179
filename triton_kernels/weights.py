"""bfloat16 parameters that are more: with 16 bits of remainder, or rounded at random."""

from __future__ import annotations

import triton
import triton.language as tl

from .codes import INF

NAN = tl.constexpr(0x7FC00000)


@triton.jit
def pattern_of(weight):
    """The bits of float32, every NaN made the same one: int32."""
    return tl.where(weight != weight, NAN, weight.to(tl.int32, bitcast=True))


@triton.jit
def joined(param, remainder):
    """The float32 weight of bfloat16 bits and what they lack, both int16."""
    return ((param.to(tl.int32) << 16) + remainder.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def split(weight):
    """Its nearest bfloat16, halves away from zero, and what that lacks, both as int16."""
    pattern = pattern_of(weight)
    # Of either the lower 16 bits alone are kept, so that wrapping round does no harm.
    return ((pattern + 0x8000) >> 16).to(tl.int16), pattern.to(tl.int16)


@triton.jit
def stochastically_rounded(weight, random):
    """bfloat16 bits, int16: rounded up where the upper 16 bits of ``random`` say so."""
    pattern = pattern_of(weight)
    finite = (pattern & 0x7FFFFFFF) < INF
    return ((pattern + tl.where(finite, (random >> 16).to(tl.int32), 0)) >> 16).to(tl.int16)
