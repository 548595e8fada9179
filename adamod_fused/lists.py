"""One step of any rule on lists of tensors that belong to the caller: no optimizer, no state."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import coded_states, execution, fake, formats, validation
from .backends import extension
from .layout import dense_strides, lies_as
from .list_plans import KeptPlans, ListPlan, Lists

_plans = KeptPlans()

BESIDE = {formats.EXPONENTS: "block_exponents", formats.REMAINDER: "param_remainders"}
"""The entries of a coded parameter beside its states, and what lists of them are called."""


class Coding(NamedTuple):
    """How tensors are stored that are not plain; ``beside``: the lists of :data:`BESIDE`.

    They hold a tensor for each parameter that has one, in order. ``ordinals``: as a plan's.
    """

    keywords: dict[str, Any]
    beside: Lists
    ordinals: Sequence[int]


def names_of_lists(rule: Any) -> tuple[str, ...]:
    """What the lists of a step are called, in order: gradients are read, all others written."""
    return ("params", "grads", *(f"{name}s" for name in rule.states), "state_steps")


@torch.no_grad()
def step(
    rule: Any,
    lists: Lists,
    hyperparameters: dict[str, Any],
    backend: str | None = None,
    fused: bool = False,
    coding: Coding | None = None,
) -> None:
    """Steps ``lists``, which are those of :func:`names_of_lists`, in place.

    Args:
        rule: a rule of ``reference.py``.
        lists: of one length; each tensor as the optimizer class has it.
        hyperparameters: the rule's, as checked numbers.
        backend: None chooses the fastest for each tensor; a name obeys or raises.
        fused: True insists on a kernel, as for the optimizer class.
        coding: None steps floats.

    Raises:
        TypeError, ValueError, RuntimeError: something cannot be stepped; no tensor has changed.
    """
    kind = _kind_of(rule, lists[0], backend, fused, coding)
    plan = _plans.take(kind) if kind is not None else None
    if plan is not None and plan.load(lists, coding.beside if coding is not None else ((), ())):
        plan.run([hyperparameters])
    else:
        plan = _step_anew(rule, lists, hyperparameters, backend, fused, coding)
    if kind is not None and plan is not None and plan.forget():
        _plans.put(kind, plan)


def _kind_of(
    rule: Any, params: Sequence[Tensor], backend: Any, fused: Any, coding: Coding | None
) -> Hashable | None:
    """The key of a plan: all that it depends on and does not check again.

    None where no plan can be kept: without the extension, in fake mode, which refuses real tensors,
    and for arguments that the step will refuse.
    """
    if extension.core is None or fake.in_fake_mode():
        return None
    # Such arguments may have no hash, or be equal to good ones, as 1 is to True.
    if not (backend is None or isinstance(backend, str)) or not isinstance(fused, bool):
        return None
    params_kind = extension.core.kind_of_params(params)
    if params_kind is None:
        return None
    if coding is None:
        return rule, backend, fused, params_kind
    keywords, ordinals = tuple(coding.keywords.items()), tuple(coding.ordinals)
    return rule, backend, fused, params_kind, keywords, ordinals


def _step_anew(
    rule: Any,
    lists: Lists,
    hyperparameters: dict[str, Any],
    backend: str | None,
    fused: bool,
    coding: Coding | None,
) -> ListPlan | None:
    """Checks all tensors, steps them, and returns a plan for others like them if it can be kept."""
    params, grads, *states, steps = lists
    for name, tensors in zip(names_of_lists(rule), lists, strict=True):
        if len(tensors) != len(params):
            raise ValueError(f"{name} has {len(tensors)} tensors, params {len(params)}")
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}[{i}] must be a tensor, got {validation.shown(tensor)}")
    grad_of = dict(zip(params, grads, strict=True))
    if len(grad_of) != len(params):
        raise ValueError("params holds a tensor twice; give each tensor once")

    names = ("step", *rule.states)
    given = [dict(zip(names, entries, strict=True)) for entries in zip(steps, *states, strict=True)]
    keywords = {**execution.DEFAULTS, **formats.DEFAULTS, "backend": backend, "fused": fused}
    group = {**keywords, "params": params}
    ordinals = coding.ordinals if coding is not None else ()
    if coding is not None:
        group |= coding.keywords
        formats.check(group)
        if len(ordinals) not in (0, len(params)):
            raise ValueError(f"ordinals has {len(ordinals)} numbers, params {len(params)} tensors")
        _put_beside(rule, group, given, coding.beside)
    execution.check(group)
    state = {param: dict(entries) for param, entries in zip(params, given, strict=True)}
    # A step inside a graph must not wait for a device.
    plan = ListPlan(rule, [group], state, grad_of.__getitem__, ordinals=ordinals, may_wait=False)
    plan.load_state(state)
    plan.run([hyperparameters])
    fits = True
    for param, entries in zip(params, given, strict=True):
        for name, tensor in entries.items():
            if state[param][name] is not tensor:  # it was stepped in a layout of its own
                tensor.copy_(state[param][name])
                fits = False
    return plan if fits else None


def _put_beside(
    rule: Any, group: dict[str, Any], given: Sequence[dict[str, Tensor]], beside: Lists
) -> None:
    """Puts the tensors of ``beside`` into the entries of the parameters that they belong to."""
    labels = [validation.label(0, i, group) for i in range(len(given))]
    wanted: dict[str, list[int]] = {name: [] for name in BESIDE}
    for i, (param, who) in enumerate(zip(group["params"], labels, strict=True)):
        validation.check_param(param, who)
        stored = formats.formats_of(param, group, who)
        if stored.codes_states:
            _check_codes(rule, param, given[i], stored, who)
            wanted[formats.EXPONENTS].append(i)
        if stored.splits_weights:
            wanted[formats.REMAINDER].append(i)
    for (entry, name), tensors in zip(BESIDE.items(), beside, strict=True):
        owners = wanted[entry]
        if len(tensors) != len(owners):
            lacking = [labels[i] for i in owners[len(tensors) :]]
            says = f"; {lacking[0]} is the first without" if lacking else ""
            raise ValueError(
                f"{name} has {len(tensors)} tensors, and {len(owners)} parameters have one in "
                f"state_format={group['state_format']!r}, "
                f"weight_format={group['weight_format']!r}{says}; give one for each of these"
            )
        for i, tensor in zip(owners, tensors, strict=True):
            given[i][entry] = tensor


def _check_codes(
    rule: Any, param: Tensor, entries: dict[str, Tensor], stored: formats.Formats, who: str
) -> None:
    """Raises where states would have to be coded anew: the caller's cannot take that."""
    dtype, layout = coded_states.state_dtype(param, stored), dense_strides(param)
    for name in rule.states:
        state = entries[name]
        if state.dtype != dtype:
            raise TypeError(
                f"{name} of {who} has dtype {state.dtype}, and state_format={stored.state!r} keeps "
                f"states in {dtype}; the optimizer class converts states at a step that is not "
                "compiled"
            )
        if state.shape == param.shape and not lies_as(state, layout):
            raise ValueError(
                f"{name} of {who} has strides {state.stride()}, and codes lie in memory as their "
                f"parameter does, without gaps: {layout}; the optimizer class converts states at "
                "a step that is not compiled"
            )
