"""What values of states can be, whoever brings them: a state dict, a conversion or an edit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from . import finite, validation
from .codes import Values
from .dtensor import local
from .fake import has_values
from .layout import dense_strides, lies_as


def check(rule: Any, named: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises where states hold values that no step leaves; waits once for each device.

    Negative values of a state that the rule never makes negative, and steps that are no whole
    number in range. Of DTensors each rank looks at its own elements.

    Args:
        rule: a rule of ``reference.py``.
        named: the label of each parameter and its entries, ``step`` and the rule's states.

    Raises:
        TypeError, ValueError: names the state and the parameter.
    """
    flags: list[Tensor] = []
    errors: list[str] = []
    unsigned = [
        name
        for name, values in zip(rule.states, rule.values, strict=True)
        if values is not Values.OF_BOTH_SIGNS
    ]
    for who, entries in named:
        for name in (n for n in unsigned if n in entries and has_values(entries[n])):
            flags.append((local(entries[name]) < 0).any())
            errors.append(
                f"{name} of {who} holds negative values, which no step makes; load a state_dict "
                "that an optimizer saved, or mend what wrote this one"
            )
        step, whose = entries["step"], f"step of {who}"
        if isinstance(step, Tensor) and not has_values(step):
            continue
        if isinstance(step, Tensor) and step.device.type != "cpu" and step.numel() == 1:
            is_good = (step >= 0) & (step <= validation.MAX_STEP) & (step == step.floor())
            flags.append(~is_good.reshape(()))
            errors.append(
                f"{whose} must be a whole number in [0, {validation.MAX_STEP:g}], and is not"
            )
            continue
        validation.check_range(whose, step, 0.0, validation.MAX_STEP + 1)
        if not float(step).is_integer():
            raise ValueError(f"{whose} must be a whole number, got {step!r}")
    for is_bad, error in zip(finite.as_booleans(flags), errors, strict=True):
        if is_bad:
            raise ValueError(error)


def check_disjoint_states(rule: Any, named: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises where elements of one state, or two states, share memory.

    Raises:
        ValueError: names the state and the parameter.
    """
    dense: list[tuple[Tensor, str]] = []
    for who, entries in named:
        for name in ("step", *rule.states):
            tensor = entries[name]
            is_read = isinstance(tensor, Tensor) and has_values(tensor)
            if not is_read or not validation.is_plain(local(tensor)):
                continue
            shard = local(tensor)
            validation.check_elements(shard, f"{name} of {who}")
            if lies_as(shard, dense_strides(shard)):
                dense.append((shard, f"{name} of {who}"))
    validation.check_disjoint(
        dense, remedy="clone one of them: a load takes over the tensors of its dict"
    )
