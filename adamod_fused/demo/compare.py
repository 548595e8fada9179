"""Bit-for-bit comparison of two runs: every parameter and every optimizer state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """Where two runs are furthest apart."""

    tensor: str
    largest: float
    elements: int
    """Elements that differ, over all tensors."""

    def __str__(self) -> str:
        return f"{self.elements:,} elements differ, by up to {self.largest:.3g} in {self.tensor}"


def difference(run: dict[str, Tensor], reference: dict[str, Tensor]) -> Difference | None:
    """None if all tensors have the same bits (any NaN equals any NaN), else the worst of them."""
    if run.keys() != reference.keys():
        raise ValueError(f"not the same tensors: {sorted(run.keys() ^ reference.keys())}")
    elements = 0
    worst, largest = "", -1.0
    for name, tensor in run.items():
        other = reference[name]
        unequal = ~(_same_bits(tensor, other) | (tensor.isnan() & other.isnan()))
        if not unequal.any():
            continue
        elements += int(unequal.sum())
        # A NaN on one side only is no small difference: count it as an infinite one.
        distance = (tensor - other).abs().nan_to_num(nan=torch.inf)[unequal].max().item()
        if distance > largest:
            worst, largest = name, distance
    return Difference(worst, largest, elements) if elements else None


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise; unlike ``==`` this tells -0.0 from 0.0."""
    if a.dtype != torch.float32 or b.dtype != torch.float32 or a.shape != b.shape:
        described = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (a, b))
        raise ValueError(f"both must be float32 and of one shape, got {described}")
    return a.contiguous().view(torch.int32) == b.contiguous().view(torch.int32)
