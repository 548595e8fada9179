"""Tensors that the fuzzers draw: any values, any layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = ((), (0,), (1,), (3,), (33,), (4, 9), (2, 3, 5), (70,))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXTREMES = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 1e20, -3e38, 6e4, 6e-8)


def random_values(shape: tuple[int, ...], seed: int, extremes: bool = False) -> Tensor:
    """float32 over some decades; where asked, a tenth of them extreme."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    values *= 10.0 ** torch.randint(-4, 3, shape, generator=generator)
    if extremes:
        pool = torch.tensor(EXTREMES)
        drawn = pool[torch.randint(len(pool), shape, generator=generator)]
        values = torch.where(torch.rand(shape, generator=generator) < 0.1, drawn, values)
    return values


def contiguous(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def reversed_dimensions(values: Tensor) -> Tensor:
    order = tuple(reversed(range(values.ndim)))
    return values.permute(order).contiguous().permute(order)


def with_gaps(values: Tensor) -> Tensor:
    return torch.stack([values, values], -1)[..., 1]


def unaligned(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.reshape(-1)])[1:].view(values.shape)


LAYOUTS = {f.__name__: f for f in (contiguous, reversed_dimensions, with_gaps, unaligned)}
