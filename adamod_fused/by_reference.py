"""One parameter's step by the rule in pure PyTorch, whatever formats it is in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import codes
from .dtensor import local, redistributed
from .formats import EXPONENTS, REMAINDER
from .layout import dense_strides, in_memory_order, laid_out
from .members import ReferenceStep
from .observed import Slots
from .observed import observe as observations
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

    grad = _flat(redistributed(grad, param), member.layout)
    given = [_flat(state, member.layout) for state in states]
    step_(rule, scalars, in_memory_order(dense), grad, given, grad_scale, coded)
    if dense is not shard:
        shard.copy_(dense)


def observe(rule: Any, due: ReferenceStep, scalars: Any, grad_scale: float) -> tuple[Tensor, Slots]:
    """What is seen of the step that ``step`` has just done with the same arguments."""
    member, grad, entries = due
    layout = member.layout or dense_strides(local(member.param))
    states = [_flat(entries[name], layout) for name in rule.states]
    if EXPONENTS in entries:
        states = codes.decode(rule.values, states, entries[EXPONENTS])
    grad = _flat(redistributed(grad, member.param), layout)
    observed = observations(rule, scalars, grad, states, grad_scale)
    return observed, Slots.of_one(grad.numel())


def _flat(tensor: Tensor, layout: tuple[int, ...]) -> Tensor:
    return in_memory_order(laid_out(local(tensor), layout))
