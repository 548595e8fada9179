"""Square root and division of float32 as IEEE has them: rounded once, subnormals kept.

``tl.sqrt_rn`` and ``tl.div_rn`` are that since Triton 3.6. Before, they compile to NVIDIA's
``.ftz`` instructions, which take subnormals for zero (triton-lang/triton#8557).
"""

from __future__ import annotations

import triton
import triton.language as tl

FLUSHES = tl.constexpr(tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 6))


@triton.jit
def sqrt_rn(x):
    """The square root of ``x``; that of a subnormal is normal, so scaling it is exact."""
    if FLUSHES:
        tiny = x < 2.0**-100
        root = tl.sqrt_rn(tl.where(tiny, x * 2.0**64, x)) * tl.where(tiny, 2.0**-32, 1.0)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def div_rn(x, y):
    """``x / y``; rounding through float64 is harmless: its 53 bits are over twice 24 plus one."""
    return (x.to(tl.float64) / y.to(tl.float64)).to(tl.float32) if FLUSHES else tl.div_rn(x, y)
