"""What ``step()`` is to torch.compile: one call of the rule's operator for each param group.

Nothing of the compiled table is traced: it checks addresses, which a graph does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import validation
from .plan import Groups, Plan, State


def is_traceable(rule: Any, groups: Groups, state: State) -> bool:
    """Whether an operator can step all these; if so, the states that are missing are made.

    Not for the tracer to look into: states are made as the optimizer itself makes them, before
    their values become inputs of a graph.

    Raises:
        TypeError, ValueError, RuntimeError: something cannot be stepped; ``state`` is unchanged.
    """
    if not all(validation.is_plain(param) for group in groups for param in group["params"]):
        return False
    Plan(rule, groups, state)
    return True


def step(
    operator: Any, rule: Any, groups: Groups, state: State, hyperparameters: Sequence[str]
) -> None:
    """Steps every parameter that has a gradient and states; to be traced."""
    for group in groups:
        params = [param for param in group["params"] if param.grad is not None]
        if params:
            operator(
                params,
                [param.grad for param in params],
                *([state[param][name] for param in params] for name in (*rule.states, "step")),
                **{name: as_operand(group[name]) for name in hyperparameters},
                backend=group["backend"],
            )


def as_operand(value: Any) -> Any:
    """A hyperparameter as the rule's operator takes it."""
    if isinstance(value, (Tensor, bool, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [as_operand(item) for item in value]
    # A product, since a tracer that meets torch.tensor(value) compiles anew for every value; with
    # a product it takes a number that has changed once for an input of the graph.
    return torch.ones((), dtype=torch.float64, device="cpu") * value
