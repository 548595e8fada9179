"""One parameter's step by the rule in pure PyTorch, whatever formats it is in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .dtensor import local, redistributed
from .formats import EXPONENTS, REMAINDER
from .layout import in_memory_order, laid_out
from .members import ReferenceStep
from .reference import Coded, step_


def step(rule: Any, due: ReferenceStep, scalars: Any, grad_scale: float) -> None:
    """Steps the parameter and its states in place; not its count."""
    member, grad, entries = due
    param, states = member.param, [due.states[name] for name in rule.states]
    if member.formats.are_plain:
        step_(rule, scalars, param, grad, states, grad_scale)
        return
    exponents, remainder = entries.get(EXPONENTS), entries.get(REMAINDER)
    shard = local(param).detach()
    dense = laid_out(shard, member.layout)
    coded = Coded(
        exponents,
        None if remainder is None else in_memory_order(local(remainder)),
        member.first_index,
        member.key,
        member.formats.weight == "stochastic",
    )

    def flat(tensor: Tensor) -> Tensor:
        return in_memory_order(laid_out(local(tensor), member.layout))

    grad = flat(redistributed(grad, param))
    step_(rule, scalars, in_memory_order(dense), grad, [flat(s) for s in states], grad_scale, coded)
    if dense is not shard:
        shard.copy_(dense)
