"""What ``step()`` is to torch.compile: one call of the rule's operator for each param group.

Nothing of the compiled table is traced: it checks addresses, which a graph does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .optimizer import FusedOptimizer

# In place, which is where the tracer looks for it: the answer is built into the graph.
torch.compiler.assume_constant_result(FusedOptimizer._is_traceable)  # type: ignore[no-untyped-call, unused-ignore]


def step(optimizer: FusedOptimizer) -> None:
    """Steps every parameter that has a gradient; to be traced."""
    is_special = optimizer._is_controlled() or _may_be_coded(optimizer)
    if is_special or not optimizer._is_traceable():
        outside_of_the_graph(optimizer._step_eagerly)
        return
    names = optimizer._hyperparameter_names
    state_names = (*optimizer.rule.states, "step")
    for group in optimizer.param_groups:
        params = [param for param in group["params"] if param.grad is not None]
        states = [optimizer.state[param] for param in params]
        if not all(states):  # made while a step is traced, when these gradients were not there
            raise RuntimeError(
                "a graph that makes gradients and steps with them needs the states to be there; "
                "let the optimizer do one step that is not compiled before"
            )
        if params:
            with torch.no_grad():
                optimizer.operator(
                    params,
                    [param.grad for param in params],
                    *([entries[name] for entries in states] for name in state_names),
                    **{name: as_operand(group[name]) for name in names},
                    backend=group["backend"],
                    fused=bool(group["fused"]),
                )


def _may_be_coded(optimizer: FusedOptimizer) -> bool:
    """Whether a param group asks for formats, which the rule's operator does not have."""
    asked = [(g["state_format"], g["weight_format"]) for g in optimizer.param_groups]
    return any(formats != ("fp32", "plain") for formats in asked)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def outside_of_the_graph(method: Callable[..., Any], *arguments: Any) -> Any:
    """What eager does, by a method of the optimizer; the graph breaks here."""
    return method(*arguments)


def as_operand(value: Any) -> Any:
    """A hyperparameter as the rule's operator takes it."""
    if isinstance(value, (Tensor, bool, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [as_operand(item) for item in value]
    # A product, since a tracer that meets torch.tensor(value) compiles anew for every value; with
    # a product it takes a number that has changed once for an input of the graph.
    return torch.ones((), dtype=torch.float64, device="cpu") * value
