"""A state dict of AdaMod's in another format of states and weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import value_checks
from ..adamod import AdaMod
from ..coded_states import check_remainder, in_formats, to_values
from ..dtensor import local
from ..formats import DEFAULTS, EXPONENTS, REMAINDER, Formats, check
from ..layout import dense_strides
from ..validation import check_state_entries, label
from .formats import ADAMOD, check_groups, check_structure


@torch.no_grad()
def convert_format(
    state_dict: Mapping[str, Any],
    *,
    state_format: str | None = None,
    weight_format: str | None = None,
) -> dict[str, Any]:
    """Makes a state dict of AdaMod's that holds what another format can hold, no more.

    Any state dict loads into an optimizer of any format as it is; this is for smaller files, or
    to see what is lost. Values of ``"8bit"`` are bfloat16, all others float32, each the nearest
    that the format has beside the others of its block.

    Args:
        state_dict: what ``AdaMod.state_dict()`` returned. It is not changed, and no tensor is
            shared with it. States of fewer elements than its ``min_coded_numel`` become float32.
        state_format: ``"fp32"``, ``"16bit"`` or ``"8bit"``; None keeps each group's. Default: None.
        weight_format: ``"plain"``, ``"split"`` or ``"stochastic"``; None keeps each group's.
            What is not ``"split"`` drops the lower halves of weights; ``"split"`` starts with
            zeros where there are none. Default: None.

    Returns:
        A state dict whose param groups name the formats.

    Raises:
        TypeError: an entry of the state dict of a wrong type.
        ValueError: an unknown format; a state dict that is not AdaMod's or not whole, or holds
            values that no step makes; float64 states, which stay as they are.

    Example:
        >>> import torch
        >>> from adamod_fused import AdaMod, checkpoint
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = AdaMod(model.parameters())
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> smaller = checkpoint.convert_format(optimizer.state_dict(), state_format="8bit")
        >>> optimizer.load_state_dict(smaller)
    """
    groups = check_structure(state_dict)
    check_groups(groups, ADAMOD)
    given = {"state_format": state_format, "weight_format": weight_format}
    given = {name: value for name, value in given.items() if value is not None}
    converted, state = [], {}
    value_checks.check(AdaMod.rule, _checked(state_dict, groups))
    for index, group in enumerate(groups):
        converted.append({**DEFAULTS, **copy.deepcopy(dict(group)), **given})
        check(converted[-1])
        for i, key in enumerate(group["params"]):
            if saved := state_dict["state"].get(key):
                state[key] = _converted(saved, converted[-1], label(index, i, group))
    return {"state": state, "param_groups": converted}


def _checked(
    state_dict: Mapping[str, Any], groups: list[dict[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Labels and entries of all parameters that have some; raises where they are not whole."""
    named = []
    for g, group in enumerate(groups):
        for i, key in enumerate(group["params"]):
            if saved := state_dict["state"].get(key):
                who = label(g, i, group)
                states = [saved.get(name) for name in AdaMod.rule.states]
                if EXPONENTS in saved or not all(map(_is_state, states)):
                    raise TypeError(
                        f"the states of {who} must be tensors of floating point numbers, "
                        f"{', '.join(AdaMod.rule.states)}, and no codes; give what "
                        "AdaMod.state_dict() returned"
                    )
                if "step" not in saved:
                    raise ValueError(f"the state of {who} lacks step; give a whole state dict")
                check_state_entries(states[0], dict(saved), AdaMod.rule.states, who)
                check_remainder(states[0], dict(saved), who)
                named.append((who, saved))
    return named


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _converted(saved: Mapping[str, Any], group: dict[str, Any], who: str) -> dict[str, Any]:
    rule = AdaMod.rule
    like: Any = saved[rule.states[0]]
    formats = Formats(group["state_format"], group["weight_format"])
    if like.numel() < group["min_coded_numel"]:
        formats = formats._replace(state="fp32")
    if like.dtype is torch.float64 and formats.codes_states:
        raise ValueError(
            f"state_format={formats.state!r} has less than the states of {who}, float64, are kept "
            "for; leave it out, or convert the states to float32"
        )
    entries = {name: copy.deepcopy(value) for name, value in saved.items()}
    made = in_formats(rule, like, entries, formats, dense_strides(local(like)))
    others = {name: value for name, value in entries.items() if name != REMAINDER}
    return to_values(rule, like, others | made)
