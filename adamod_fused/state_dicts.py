"""Whether a state dict fits an optimizer, and which of its states are whose."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import execution, validation

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer


def match(
    optimizer: FusedOptimizer, state_dict: dict[str, Any]
) -> list[tuple[Tensor, dict[str, Any]]]:
    """Parameters with the state that a state dict holds for them, where it holds any."""
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    saved = state_dict["state"]
    return [(p, saved[i]) for i, p in zip(ids, params, strict=True) if saved.get(i)]


def check(optimizer: FusedOptimizer, state_dict: dict[str, Any]) -> None:
    """Raises where a state dict does not fit ``optimizer``.

    Raises:
        TypeError, ValueError: says what is missing or of another size, and what to load instead.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(
                f"the state dict lacks {key!r} (it has {', '.join(map(repr, state_dict))}); "
                "load what an optimizer's state_dict() returned"
            )
    saved_groups = state_dict["param_groups"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"the state dict has param groups of {saved_sizes} parameters, the optimizer of "
            f"{sizes}; load a state dict saved for the same model and groups"
        )
    for index, group in enumerate(saved_groups):
        given = {**group, **execution.DEFAULTS}
        missing = [name for name in optimizer.defaults if name not in given]
        if missing:
            raise ValueError(
                f"param group {index} of the state dict lacks {', '.join(missing)}; load a "
                f"state dict that {type(optimizer).__name__} saved"
            )
        optimizer._check_group(given)
    labels = {
        param: validation.label(g, i, group)
        for g, group in enumerate(optimizer.param_groups)
        for i, param in enumerate(group["params"])
    }
    for param, saved in match(optimizer, state_dict):
        validation.check_param(param, labels[param])
        validation.check_state_entries(param, saved, optimizer.rule.states, labels[param])
