"""Which tensor was the first to hold inf or NaN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from . import coded_states, validation
from .dtensor import local

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer


def read_or_written(optimizer: FusedOptimizer) -> Iterator[tuple[str, Tensor]]:
    """Names of gradients, parameters and states, and whether all their values are finite."""
    for index, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group["params"]):
            if is_lazy(param):
                continue
            who = validation.label(index, i, group)
            entries = optimizer.state.get(param) or {}
            if param.grad is not None:
                yield f"the gradient of {who}", is_finite(param.grad)
            yield who, is_finite(param)
            flags = coded_states.are_finite(optimizer.rule, entries, who)
            yield from ((f"{name} of {who}", flag) for name, flag in flags.items())


def check(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises where a tensor, given as its name and ``is_finite``, holds inf or NaN.

    Waits once for each device.

    Raises:
        FloatingPointError: names the first, and how many more there are.
    """
    found = list(named)
    flags = as_booleans([flag for _, flag in found])
    bad = [name for (name, _), is_good in zip(found, flags, strict=True) if not is_good]
    if bad:
        others = f"; so do {len(bad) - 1} more" if len(bad) > 1 else ""
        raise FloatingPointError(f"{bad[0]} holds inf or NaN{others}")


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all elements are finite, those of this rank of a DTensor: 0-dim, boolean."""
    values = local(tensor.detach())
    values = values.coalesce().values() if values.is_sparse else values
    if values.numel() == 0 or not values.is_floating_point():
        return torch.ones((), dtype=torch.bool, device=values.device)
    # The extremes are one pass and NaN if anything is; isfinite().all() takes a CPU 20 times as
    # long, and memory for a boolean an element.
    return torch.stack(torch.aminmax(values)).isfinite().all()


def as_booleans(flags: list[Tensor]) -> list[bool]:
    """0-dim tensors as booleans, those of one device by one copy."""
    found: dict[int, bool] = {}
    for device in {flag.device for flag in flags}:
        places = [i for i, flag in enumerate(flags) if flag.device == device]
        values = torch.stack([flags[i] for i in places]).tolist()
        found |= dict(zip(places, values, strict=True))
    return [found[i] for i in range(len(flags))]
