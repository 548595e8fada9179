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
    """Names and gradients, parameters and values of states, one after another."""
    rule = optimizer.rule
    for index, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group["params"]):
            if is_lazy(param):
                continue
            who = validation.label(index, i, group)
            entries = optimizer.state.get(param) or {}
            values = coded_states.to_values(rule, param, entries, who) if entries else {}
            if param.grad is not None:
                yield f"the gradient of {who}", param.grad
            yield who, param
            yield from (
                (f"{name} of {who}", values[name]) for name in rule.states if name in values
            )


def check(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises where a tensor holds inf or NaN; waits once for each device.

    Raises:
        FloatingPointError: names the first, and how many more there are.
    """
    # One by one: decoded states are not to be there all at once.
    found = [(name, is_finite(tensor)) for name, tensor in named if tensor.is_floating_point()]
    flags = as_booleans([flag for _, flag in found])
    bad = [name for (name, _), is_good in zip(found, flags, strict=True) if not is_good]
    if bad:
        others = f"; so do {len(bad) - 1} more" if len(bad) > 1 else ""
        raise FloatingPointError(f"{bad[0]} holds inf or NaN{others}")


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all elements are finite, those of this rank of a DTensor: 0-dim, boolean."""
    values = local(tensor.detach())
    values = values.coalesce().values() if values.is_sparse else values
    return values.isfinite().all()


def as_booleans(flags: list[Tensor]) -> list[bool]:
    """0-dim tensors as booleans, those of one device by one copy."""
    found: dict[int, bool] = {}
    for device in {flag.device for flag in flags}:
        places = [i for i, flag in enumerate(flags) if flag.device == device]
        values = torch.stack([flags[i] for i in places]).tolist()
        found |= dict(zip(places, values, strict=True))
    return [found[i] for i in range(len(flags))]
