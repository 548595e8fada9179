"""Values of states, and the codes that the oracle makes of them, for tests of conversions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adamod_fused import codes
from adamod_fused.codes import Values
from adamod_fused.coding import VALUE_DTYPES

KINDS = tuple(Values)
KINDS_OF_RULES = [
    KINDS,
    (Values.OF_BOTH_SIGNS,),
    (Values.SAFE_TOO_SMALL,),
    (Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE),
    (Values.SAFE_TOO_SMALL, Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE),
]
HALF = 1 << 31  # random bits that round to the nearest


def values_of(kind: Values, numel: int, seed: int) -> Tensor:
    """Blocks of every scale and spread, zeros, subnormals, the largest, and what is not finite."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-149, 128, (codes.num_blocks(numel),), generator=generator)
    scale = scale.repeat_interleave(codes.BLOCK)[:numel]
    spread = torch.randint(-20, 1, (numel,), generator=generator)
    x = torch.randn(numel, generator=generator) * torch.exp2((scale + spread).double())
    x = x.float()
    for value in (0.0, -0.0, 1e-45, 3.4e38, torch.inf, torch.nan):
        x[torch.rand(numel, generator=generator) < 0.02] = value
    x[96:160] = 0.0
    if kind is Values.OF_BOTH_SIGNS:
        x[torch.rand(numel, generator=generator) < 0.02] = -torch.inf
        return x
    return x.abs()


def encoded(
    kinds: Sequence[Values], num_bytes: int, values: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """What the oracle makes of values, rounded to the nearest."""
    half = torch.full((len(values[0]),), HALF, dtype=torch.int64)
    return codes.encode(kinds, num_bytes, values, [half] * len(kinds))


def room_for(coded: Sequence[Tensor], offset: int = 0) -> list[Tensor]:
    """Values not yet written, a number of elements behind an aligned address."""
    dtype = VALUE_DTYPES[coded[0].dtype]
    return [torch.full((len(c) + offset,), 7.0, dtype=dtype)[offset:] for c in coded]
