"""The sum of the squares of a plan's gradients, from its parts.

A part is what one pass of one backend sums up: gradients of one device and dtype that are spread
over ranks in one way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dtensor import local, redistributed, shards, summed_over_shards
from .reference import sum_squares


class Part(NamedTuple):
    """Parameters of a compiled table, by their indices there, and the batch that serves them."""

    batch: Any
    like: Tensor
    """A parameter that is spread over ranks as all of them are."""
    members: list[int]


def parts(members: Iterable[tuple[int, Tensor, Any]]) -> list[Part]:
    """The parts of (index in the table, parameter, batch that serves it)."""
    found: dict[Any, Part] = {}
    for index, param, batch in members:
        part = found.setdefault((batch, shards(param)), Part(batch, param, []))
        part.members.append(index)
    return [*found.values()]


def by_kernels(table: Any, parts: Sequence[Part]) -> list[Tensor]:
    """Of the gradients that ``table`` holds."""
    sums = []
    for batch, like, members in parts:
        grads = table.grad_table(members)
        if grads.num_rows:
            found = batch.backend.sum_squares(grads, batch.device, batch.dtype)
            sums.append(summed_over_shards(found, like))
    return sums


def by_reference(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Of pairs of a parameter and its gradient."""
    found: dict[Any, tuple[Tensor, list[Tensor]]] = {}
    for param, grad in pairs:
        kind = (param.device, param.dtype, shards(param))
        found.setdefault(kind, (param, []))[1].append(local(redistributed(grad, param)))
    return [summed_over_shards(sum_squares(grads), like) for like, grads in found.values()]


def total(sums: Sequence[Tensor]) -> Tensor:
    """The sum of all parts on the first one's device: 0-dim float64."""
    if not sums:
        return torch.zeros((), dtype=torch.float64, device="cpu")
    return functools.reduce(lambda a, b: a + b.to(a.device), sums)
