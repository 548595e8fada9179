"""One step of any rule on lists of tensors that belong to the caller: no optimizer, no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import execution, formats
from .plan import Plan


def names_of_lists(rule: Any) -> tuple[str, ...]:
    """What the lists of a step are called, in order: gradients are read, all others written."""
    return ("params", "grads", *(f"{name}s" for name in rule.states), "state_steps")


@torch.no_grad()
def step(
    rule: Any,
    lists: Sequence[Sequence[Tensor]],
    hyperparameters: dict[str, Any],
    backend: str | None = None,
    fused: bool = False,
) -> None:
    """Steps ``lists``, which are those of :func:`names_of_lists`, in place.

    Args:
        rule: a rule of ``reference.py``.
        lists: of one length; each tensor as the optimizer class has it.
        hyperparameters: the rule's, as checked numbers.
        backend: None chooses the fastest for each tensor; a name obeys or raises.
        fused: True insists on a kernel, as for the optimizer class.

    Raises:
        TypeError, ValueError, RuntimeError: something cannot be stepped; no tensor has changed.
    """
    params, grads, *states, steps = lists
    for name, tensors in zip(names_of_lists(rule), lists, strict=True):
        if len(tensors) != len(params):
            raise ValueError(f"{name} has {len(tensors)} tensors, params {len(params)}")
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}[{i}] must be a tensor, got {tensor!r}")
    grad_of = dict(zip(params, grads, strict=True))
    if len(grad_of) != len(params):
        raise ValueError("params holds a tensor twice; give each tensor once")

    names = ("step", *rule.states)
    given = [dict(zip(names, entries, strict=True)) for entries in zip(steps, *states, strict=True)]
    state = {param: dict(entries) for param, entries in zip(params, given, strict=True)}
    keywords = {**execution.DEFAULTS, **formats.DEFAULTS, "backend": backend, "fused": fused}
    group = {**keywords, "params": params}
    execution.check(group)
    plan = Plan(rule, [group], state, grad_of.__getitem__)
    plan.load(state)
    plan.run([hyperparameters])
    for param, entries in zip(params, given, strict=True):
        for name, tensor in entries.items():
            if state[param][name] is not tensor:  # it was stepped in a layout of its own
                tensor.copy_(state[param][name])
