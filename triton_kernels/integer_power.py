"""base^exponent by square and multiply, csrc/rules/integer_power.h: the same bits as there."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def integer_power(base, exponent):
    """``base ** exponent`` of a float64 and an int64 vector, each in its lane."""
    result = tl.full(base.shape, 1.0, tl.float64)
    longest = tl.max(exponent, axis=0)
    while longest > 0:
        result = tl.where(exponent & 1 != 0, result * base, result)
        base *= base
        exponent >>= 1
        longest >>= 1
    return result
