"""How the state dicts of each optimizer are written, and the checks that one is written so.

As read in torch 2.6 to 2.15, adamod 0.0.3 (the authors') and the first commit of its repository,
pytorch_optimizer 2.12, 3.3 and 4.1, and torch_optimizer 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import formats, state_dicts, value_checks
from ..hyperparameters import plain_numbers
from ..reference import COMPUTE_DTYPES, AdaMod
from ..state_dicts import listed
from ..validation import MAX_STEP, check_range, label, shown

Group = dict[str, Any]


def _nothing(group: Group) -> None:
    return None


class Format(NamedTuple):
    """What one optimizer's state dicts hold, and what of it AdaMod can go on with."""

    optimizer: str
    required: tuple[str, ...]  # in every param group
    states: tuple[str, ...]  # tensors in every parameter's state
    hyperparameters: Callable[[Group], Group]  # AdaMod's, as far as a group holds them
    old_names: Mapping[str, str] = {}  # of required keys
    unused: tuple[str, ...] = ()  # keys of a group that AdaMod has no use for
    ignored_states: tuple[str, ...] = ()  # entries of a parameter's state, likewise
    step_in_group: bool = False
    refused: Callable[[Group], str | None] = _nothing  # why a group cannot be converted
    other_decay: Callable[[Group], str | None] = _nothing  # what its decay is, where not ours


class ParamState(NamedTuple):
    """The state of one parameter; tensors are copies in the dtype that a step computes in."""

    key: Any  # the parameter's key in the state dict
    group: int
    step: int
    tensors: dict[str, Tensor]


def _pick(group: Group, *names: str) -> Group:
    return {name: plain_numbers(group[name]) for name in names if name in group}


def _torch_decay(group: Group) -> str | None:
    if "decoupled_weight_decay" not in group:
        return (
            "was saved by an older torch, whose state dicts do not tell AdamW's decoupled decay "
            "from Adam's L2 term in the gradient"
        )
    if not group["decoupled_weight_decay"]:
        return "is Adam's L2 term in the gradient, a part of both moments"
    return None


def _amsgrad(group: Group) -> str | None:
    if group["amsgrad"]:
        return (
            "has amsgrad=True, and AdaMod keeps no maximum of the second moment; to go on from "
            "exp_avg_sq alone, set its 'amsgrad' to False"
        )
    return None


def _released(group: Group) -> Group:
    return {
        **_pick(group, "lr", "betas", "eps", "weight_decay"),
        "beta3": plain_numbers(group["beta3"] if "beta3" in group else group["gamma"]),
        "variant": "released",
    }


def _pytorch_optimizer(group: Group) -> Group:
    *betas, beta3 = plain_numbers(group["betas"])
    return {
        **_pick(group, "lr", "eps", "weight_decay"),
        "betas": tuple(betas),
        "beta3": beta3,
        "variant": "released",
    }


def _pytorch_optimizer_decay(group: Group) -> str | None:
    if not group["weight_decouple"]:
        return "is an L2 term in the gradient (weight_decouple=False), a part of both moments"
    if group.get("fixed_decay"):
        return (
            "is not multiplied by lr (fixed_decay=True; weight_decay / lr does the same for as "
            "long as lr stays)"
        )
    return None


def _pytorch_optimizer_refused(group: Group) -> str | None:
    if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 3:
        return f"has betas={shown(group['betas'])}, where pytorch_optimizer's AdaMod has three"
    if group.get("adam_debias"):
        return (
            "has adam_debias=True, a rule that AdaMod does not have; to go on without it, set its "
            "'adam_debias' to False"
        )
    return None


_COMMON = ("lr", "betas", "eps", "weight_decay")

ADAMOD = Format(
    "adamod_fused's AdaMod",
    required=(*_COMMON, "beta3", "variant", "maximize"),
    states=AdaMod.states,
    hyperparameters=lambda group: _pick(group, *_COMMON, "maximize"),
    unused=("beta3", "variant", "backend", *formats.DEFAULTS),
    ignored_states=(formats.REMAINDER,),
)

SOURCES = {
    "torch": Format(
        "torch's Adam or AdamW",
        required=(*_COMMON, "amsgrad"),  # RAdam and NAdam have the states, and no amsgrad
        states=("exp_avg", "exp_avg_sq"),
        hyperparameters=lambda group: _pick(group, *_COMMON, "maximize"),
        unused=(
            "amsgrad",
            "foreach",
            "capturable",
            "differentiable",
            "fused",
            "decoupled_weight_decay",
        ),
        ignored_states=("max_exp_avg_sq",),
        refused=_amsgrad,
        other_decay=_torch_decay,
    ),
    "authors": Format(
        "the authors' AdaMod",
        required=(*_COMMON, "beta3"),
        old_names={"beta3": "gamma"},
        states=AdaMod.states,
        hyperparameters=_released,
        unused=("gamma",),
    ),
    "pytorch_optimizer": Format(
        "pytorch_optimizer's AdaMod",
        required=(*_COMMON, "weight_decouple"),
        states=AdaMod.states,
        hyperparameters=_pytorch_optimizer,
        unused=("step", "weight_decouple", "fixed_decay", "adam_debias", "foreach"),
        step_in_group=True,
        refused=_pytorch_optimizer_refused,
        other_decay=_pytorch_optimizer_decay,
    ),
    "torch_optimizer": Format(
        "torch_optimizer's AdaMod",
        required=(*_COMMON, "beta3"),
        states=AdaMod.states,
        hyperparameters=_released,
    ),
}


def check_structure(state_dict: Any) -> list[Group]:
    """The param groups of what is an optimizer's state dict, or a ValueError or TypeError."""
    groups = state_dicts.check_structure(state_dict)
    state = state_dict["state"]
    keys = [key for group in groups for key in group["params"]]
    stray = state.keys() - set(keys)
    if stray:
        raise ValueError(
            f"the state dict has state for {listed(sorted(stray, key=str))}, which no param group "
            "lists: groups are missing; take the whole state dict"
        )
    return groups


def check_groups(groups: list[Group], form: Format) -> None:
    """Raises ValueError where a param group is not of that format or cannot be converted."""
    remedy = f"name the optimizer that saved it: one of {', '.join(SOURCES)}"
    if form is ADAMOD:
        remedy = "give what AdaMod.state_dict() returned"
    for index, group in enumerate(groups):
        if "variant" in group and form is not ADAMOD:
            raise ValueError(
                f"param group {index} is {ADAMOD.optimizer} already: load the state dict as it is"
            )
        missing = [
            name
            for name in form.required
            if name not in group and form.old_names.get(name) not in group
        ]
        if missing:
            raise ValueError(
                f"param group {index} lacks {', '.join(missing)} (it has {listed(group)}), so this "
                f"is no state dict of {form.optimizer}; {remedy}"
            )
        reason = form.refused(group)
        if reason:
            raise ValueError(f"param group {index} {reason}")


def read_states(
    state_dict: Mapping[str, Any], groups: list[Group], form: Format
) -> list[ParamState]:
    """Copies of the states of every parameter that has been stepped.

    Raises:
        TypeError, ValueError: a state is incomplete, or is not one of that format.
    """
    states, named = [], []
    for g, group in enumerate(groups):
        for i, key in enumerate(group["params"]):
            saved = state_dict["state"].get(key)
            if saved:
                who = label(g, i, group)
                states.append(_read_state(key, saved, group, form, g, who))
                named.append((who, {"step": states[-1].step, **states[-1].tensors}))
    value_checks.check(AdaMod, named)
    return states


def _read_state(
    key: Any, saved: Mapping[str, Any], group: Group, form: Format, index: int, who: str
) -> ParamState:
    holder = group if form.step_in_group else saved
    entries = form.states if form.step_in_group else ("step", *form.states)
    missing = [name for name in entries if name not in saved]
    if form.step_in_group and "step" not in group:
        missing.append("step (in its param group)")
    if missing:
        raise ValueError(
            f"the state of {who} lacks {', '.join(missing)} (it has {listed(saved)}), which "
            f"{form.optimizer} keeps: the state dict is not its own, or not whole"
        )
    unknown = [name for name in saved if name not in (*entries, *form.ignored_states)]
    if unknown:
        raise ValueError(
            f"the state of {who} has {listed(unknown)}, which {form.optimizer} does not keep; "
            "name the optimizer that saved it, or take out what is not the optimizer's"
        )
    shape = None
    for name in form.states:
        tensor = saved[name]
        if (
            not isinstance(tensor, Tensor)
            or tensor.dtype not in COMPUTE_DTYPES
            or tensor.layout is not torch.strided
        ):
            what = (
                f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, Tensor) else shown(tensor)
            )
            raise TypeError(
                f"{name} of {who} must be a strided tensor of "
                f"{', '.join(map(str, COMPUTE_DTYPES))}, got {what}"
            )
        shape = tensor.shape if shape is None else shape
        if tensor.shape != shape:
            raise ValueError(
                f"{name} of {who} has shape {tuple(tensor.shape)}, {form.states[0]} "
                f"{tuple(shape)}: they are not of one parameter"
            )
    check_range(f"step of {who}", holder["step"], 0.0, MAX_STEP + 1)
    step = float(holder["step"])
    if not step.is_integer():
        raise ValueError(f"step of {who} must be a whole number, got {step!r}")
    copies = {
        name: saved[name].detach().resolve_neg().to(COMPUTE_DTYPES[saved[name].dtype], copy=True)
        for name in form.states
    }
    return ParamState(key, index, int(step), copies)
