"""How tensors lie in memory when a kernel steps them: all of a parameter alike, without gaps."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides without gaps in ``tensor``'s order of dimensions: its own where it has no gaps."""
    if tensor.is_contiguous():
        return tensor.stride()
    return torch.empty_like(tensor, device="meta").stride()


def lies_as(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether its elements lie as ``strides`` say, those of dimensions of size 1 aside."""
    sizes = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return tensor.numel() < 2 or all(size == 1 or a == b for size, a, b in sizes)


@torch.no_grad()
def laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``tensor`` itself where it lies in memory as it should, or else a copy that does."""
    if tensor.stride() == strides and not tensor.is_neg():
        return tensor
    copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def in_memory_order(tensor: Tensor) -> Tensor:
    """The elements of a tensor without gaps as one dimension, in the order of their addresses."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
