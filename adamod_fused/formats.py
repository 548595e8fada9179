"""How states and weights are stored: which formats there are and which parameters take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .hyperparameters import as_integer
from .validation import check_choice, check_range, shown

STATE_FORMATS = {"fp32": 4, "16bit": 2, "8bit": 1}
"""Each format of states with the bytes that an element takes."""
WEIGHT_FORMATS = ("plain", "split", "stochastic")

DEFAULTS: dict[str, Any] = {
    "state_format": "fp32",
    "weight_format": "plain",
    "min_coded_numel": 4096,
    "seed": 0,
}
"""The keywords, with what they are where nothing is said."""

INTEGERS = ("min_coded_numel", "seed")
"""Those of them that are whole numbers."""

LIVE = ("state_format", "weight_format", "min_coded_numel")
"""Those of them that stay the live optimizer's when a state dict is loaded."""

EXPONENTS = "block_exponents"
REMAINDER = "param_remainder"
"""Entries of a parameter's state, beside ``step`` and the rule's own, that formats need."""


class Formats(NamedTuple):
    """How the tensors of one parameter are stored; one kernel serves one of these."""

    state: str = "fp32"
    weight: str = "plain"

    @property
    def are_plain(self) -> bool:
        return self == PLAIN

    @property
    def codes_states(self) -> bool:
        return self.state != "fp32"

    @property
    def splits_weights(self) -> bool:
        return self.weight == "split"


PLAIN = Formats()


def check(group: dict[str, Any]) -> None:
    """Raises TypeError or ValueError where a param group's formats are bad."""
    check_choice("state_format", group["state_format"], tuple(STATE_FORMATS))
    check_choice("weight_format", group["weight_format"], WEIGHT_FORMATS)
    for name in INTEGERS:
        check_range(name, group[name], 0.0)
        if not isinstance(as_integer(group[name]), int):
            raise TypeError(f"{name} must be a whole number, got {shown(group[name])}")


def _is_part_of_fsdp1(param: Tensor) -> bool:
    """Whether ``param`` is one rank's part of a parameter that FullyShardedDataParallel has cut.

    Its flat parameter is no such part: it has as many elements on every rank.
    """
    is_flat = getattr(param, "_is_flat_param", False)
    return getattr(param, "_fsdp_flattened", False) and not is_flat


def formats_of(param: Tensor, group: dict[str, Any], label: str) -> Formats:
    """The formats of a parameter of a param group.

    Small parameters keep float32 states; of a DTensor all elements count, so that every rank
    decides alike.

    Raises:
        ValueError: the parameter's dtype has no such format; ranks would decide otherwise.
    """
    state, weight = group["state_format"], group["weight_format"]
    if weight != "plain" and param.dtype is not torch.bfloat16:
        raise ValueError(
            f"weight_format={weight!r} keeps float32 weights in bfloat16 parameters, and {label} "
            f"is {param.dtype}; give it a param group with weight_format='plain', or convert it "
            "to torch.bfloat16"
        )
    if state != "fp32" and param.dtype is torch.float64:
        raise ValueError(
            f"state_format={state!r} has less than the states of {label}, float64, are kept for; "
            "give it a param group with state_format='fp32', or convert it to torch.float32"
        )
    if state != "fp32" and group["min_coded_numel"] > 0 and _is_part_of_fsdp1(param):
        raise ValueError(
            f"min_coded_numel={group['min_coded_numel']!r} counts the elements of whole "
            f"parameters, and {label} is one rank's part of a parameter, cut by "
            "FullyShardedDataParallel(use_orig_params=True), so that ranks would differ; use "
            "fully_shard (FSDP2), or min_coded_numel=0"
        )
    if param.numel() < group["min_coded_numel"]:
        state = "fp32"
    return Formats(state, weight)
