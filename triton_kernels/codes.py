"""States in one or two bytes an element: the results of csrc/engine/codes.h, which says why.

Where several instructions there can be fewer here, they are: a GPU does integer operations at half
the rate of float32's. ``KIND`` is a number of ``Values``, ``BYTES`` what a code takes, and a base
the bit pattern of a block's exponent.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(32)  # elements that share an exponent

# Values, csrc/rules/values.h.
OF_BOTH_SIGNS = tl.constexpr(0)
SAFE_TOO_LARGE = tl.constexpr(1)
SAFE_TOO_SMALL = tl.constexpr(2)

# By bytes, then by kind; SHIFTS are the bits of a float32 that a code leaves out, TOPS the codes of
# the largest finite values.
SHIFTS = tl.constexpr(((), (20, 17, 19), (12, 12, 12)))
TOPS = tl.constexpr(((), (61, 509, 253), (32765, 65533, 65533)))
SIGNS = tl.constexpr((None, 6, 15))  # which bit is the sign of a state of both, by bytes

INF = tl.constexpr(0x7F800000)


@triton.jit
def bases(x, KIND: tl.constexpr, BYTES: tl.constexpr, AXIS: tl.constexpr):
    """The base of each block, which lie along ``AXIS`` of ``x``; zeros have no say."""
    # Without the sign, and in an order in which what has no say comes last: inf and NaN, which
    # wrap round, and zero.
    doubled = x.to(tl.uint32, bitcast=True) << 1
    if KIND == SAFE_TOO_SMALL:
        least = tl.min(doubled - 2, axis=AXIS)
        exponent = (least + 2) >> 24
        exponent = tl.where(least < 2 * INF - 2, exponent, 0).to(tl.int32)
    else:
        ONE: tl.constexpr = 1 << 24  # above inf, doubled, to 2^32
        largest = tl.maximum(tl.max(doubled + ONE, axis=AXIS), ONE) - ONE
        SHIFT: tl.constexpr = SHIFTS.value[BYTES][KIND]
        TOP: tl.constexpr = TOPS.value[BYTES][KIND]
        above = (largest >> 1).to(tl.int32) + ((1 << SHIFT) - 1 - (TOP << SHIFT))
        exponent = (above >> 23) + 1
    return tl.maximum(exponent, 1) << 23


@triton.jit
def encode(x, base, random, KIND: tl.constexpr, BYTES: tl.constexpr):
    """The codes of float32 ``x``, int32, rounded up where the upper bits of ``random`` say so."""
    SHIFT: tl.constexpr = SHIFTS.value[BYTES][KIND]
    TOP: tl.constexpr = TOPS.value[BYTES][KIND]
    pattern = x.to(tl.uint32, bitcast=True)
    magnitude = (pattern & 0x7FFFFFFF).to(tl.int32)
    dither = (random >> (32 - SHIFT)).to(tl.int32)
    code = (magnitude - (base - (1 << SHIFT)) + dither) >> SHIFT
    if KIND == OF_BOTH_SIGNS:
        threshold = (random >> 8).to(tl.int32).to(tl.float32) * 2.0**-24
        rounds_up = tl.abs(x) > threshold * base.to(tl.float32, bitcast=True)
        code = tl.where(magnitude < base, rounds_up.to(tl.int32), code)
    else:
        code = tl.maximum(code, tl.minimum(magnitude, 1))  # of zero, code is negative
    code = tl.minimum(code, TOP)
    code = tl.where(magnitude >= INF, tl.where(magnitude > INF, TOP + 2, TOP + 1), code)
    if KIND == OF_BOTH_SIGNS:
        SIGN: tl.constexpr = SIGNS.value[BYTES]
        sign = ((pattern >> (31 - SIGN)) & (1 << SIGN)).to(tl.int32)
        code |= tl.where((code == 0) | (code == TOP + 2), 0, sign)
    return code


@triton.jit
def decode(code, base, KIND: tl.constexpr, BYTES: tl.constexpr):
    """What codes, int32, stand for: float32."""
    SHIFT: tl.constexpr = SHIFTS.value[BYTES][KIND]
    TOP: tl.constexpr = TOPS.value[BYTES][KIND]
    SIGN: tl.constexpr = SIGNS.value[BYTES]
    magnitude = code & ((1 << SIGN) - 1) if KIND == OF_BOTH_SIGNS else code
    pattern = (magnitude << SHIFT) + (base - (1 << SHIFT))
    # The code after that of inf is NaN's, 0x7fc00000.
    special = ((magnitude - (TOP + 1)) << 22) + INF
    pattern = tl.where(magnitude > TOP, special, pattern)
    pattern = tl.where(magnitude == 0, 0, pattern)
    if KIND == OF_BOTH_SIGNS:
        pattern |= (code >> SIGN) << 31
    return pattern.to(tl.float32, bitcast=True)
