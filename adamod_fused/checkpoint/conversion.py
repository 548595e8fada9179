"""State dicts of other optimizers made AdaMod's, and AdaMod's made torch.optim.AdamW's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adamod import AdaMod
from ..hyperparameters import plain_numbers
from ..validation import check_choice
from .formats import (
    ADAMOD,
    SOURCES,
    Format,
    Group,
    ParamState,
    check_groups,
    check_structure,
    read_states,
)

StateDict = dict[str, Any]

_PREPARED = ("lr", "betas", "beta3", "eps", "weight_decay", "variant", "maximize")


@torch.no_grad()
def convert(
    state_dict: Mapping[str, Any],
    source: str,
    *,
    optimizer: AdaMod | None = None,
    bound_init: str = "current",
    lr: float | Sequence[float] | None = None,
    beta3: float | None = None,
    variant: str | None = None,
    weight_decay: float | Sequence[float] | None = None,
    maximize: bool | None = None,
) -> StateDict:
    r"""Makes a state dict for ``AdaMod.load_state_dict`` of one that another optimizer saved.

    Moments, step counts, lr, betas and eps go over as they are, and so does what else the param
    groups hold, such as ``param_names`` or a scheduler's ``initial_lr``. What Adam does not have,
    the bound, starts at the rate that Adam's last step had at the lr to go on with,

    .. math::
        s_t = \mathrm{lr} / (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)

    or its released form, so that the run is not held back. An element whose gradient was always
    zero has the rate lr/eps there, and stays unbounded until that has been averaged out.

    That lr is ``lr``, where it is given. Else it is the highest of the saved lr and, with
    ``optimizer``, the optimizer's lr and ``initial_lr``: a run that was saved at the end of its
    schedule says nothing about the lr of the next one. A bound that starts too low holds the run
    back for about 1/(1 - beta3) steps; one that starts too high is loose at first, as it is after
    every fall of lr.

    A param group that was saved at lr 0 goes on at the optimizer's lr. Where the lr is not the
    saved one, a saved ``initial_lr`` becomes the optimizer's or, if it has none, that lr too: a new
    scheduler starts from it.

    pytorch_optimizer counts steps by param group, torch and AdaMod by parameter: one without
    state starts here at step 1, there at its group's step.

    A hyperparameter that is given here comes first, then what the state dict says, then the param
    group of ``optimizer``, then AdaMod's default.

    Args:
        state_dict: what the other optimizer's ``state_dict()`` returned. It is not changed, and
            no tensor is shared with it. Parameters without state stay without.
        source: what saved it: ``"torch"`` (Adam and AdamW, every implementation of them;
            amsgrad is refused), ``"authors"`` (package adamod, also its first release with the
            key ``gamma``), ``"pytorch_optimizer"`` or ``"torch_optimizer"`` (their AdaMod).
        optimizer: the optimizer to go on with, of as many groups and parameters; it gives what
            the source does not have: beta3 and variant for Adam, maximize for the AdaMods, and the
            lr where 0 was saved. Default: None.
        bound_init: ``"current"`` goes on: the bound is the saved one, and for Adam the current
            rate; ``"zero"`` starts the bound's warm-up anew. Default: "current".
        lr: the lr to go on with: for all groups, or one number for each. Needed where Adam's was
            saved as 0 and ``optimizer`` has no other. Default: None.
        beta3: decay rate of the bound, for all groups. Default: None.
        variant: ``"paper"`` or ``"released"``, for all groups. The AdaMods are released ones; a
            bound saved by one is kept as it is under the other. Default: None.
        weight_decay: decoupled decay, times lr, to go on with: for all groups, or one number for
            each. Needed where the saved decay is not 0 and is of another form. Default: None.
        maximize: for all groups. Default: None.

    Returns:
        A state dict with copies of the states, float32 (float64 where they were), steps as 0-dim
        float32 tensors on the CPU and hyperparameters as plain numbers.

    Raises:
        TypeError: an argument or an entry of the state dict of a wrong type.
        ValueError: an argument out of range; a state dict that is not of that source, not whole,
            or holds what AdaMod cannot go on with: amsgrad, adam_debias, a weight decay that is
            coupled or not multiplied by lr and no ``weight_decay`` given, an lr of 0 and no other
            given.

    Example:
        >>> import torch
        >>> from adamod_fused import AdaMod, checkpoint
        >>> model = torch.nn.Linear(4, 1)
        >>> adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> adam.step()
        >>> optimizer = AdaMod(model.parameters(), beta3=0.99)
        >>> converted = checkpoint.convert(adam.state_dict(), "torch", optimizer=optimizer)
        >>> optimizer.load_state_dict(converted)
        >>> optimizer.step()

    References:
        pytorch.org/docs, ``torch.optim.Adam`` and ``AdamW``; github.com/lancopku/AdaMod;
        github.com/kozistr/pytorch_optimizer; github.com/jettify/pytorch-optimizer.
    """
    check_choice("source", source, tuple(SOURCES))
    check_choice("bound_init", bound_init, ("current", "zero"))
    form = SOURCES[source]
    groups = check_structure(state_dict)
    check_groups(groups, form)
    given = {"beta3": beta3, "variant": variant, "maximize": maximize}
    given = {name: value for name, value in given.items() if value is not None}
    decays = _decays(groups, form, weight_decay)
    templates = _templates(groups, optimizer)
    own_groups = [{} for _ in groups] if optimizer is None else optimizer.param_groups
    lrs = [None] * len(groups) if lr is None else _for_each_group("lr", lr, groups)
    converted = [
        {
            **_other_entries(group, form),
            **template,
            **form.hyperparameters(group),
            **_learning_rates(group, own, given_lr),
            **given,
            "weight_decay": decay,
        }
        for group, template, own, given_lr, decay in zip(
            groups, templates, own_groups, lrs, decays, strict=True
        )
    ]
    for index, group in enumerate(converted):
        try:
            AdaMod.check_hyperparameters(group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param group {index}: {error}") from None
    state = {}
    for entry in read_states(state_dict, groups, form):
        group = converted[entry.group]
        bound = entry.tensors.get("exp_avg_lr")
        if bound_init == "zero" or entry.step == 0:  # before the first step there is no rate
            bound = torch.zeros_like(entry.tensors["exp_avg_sq"])
        elif bound is None:
            highest = group["lr"]
            if lrs[entry.group] is None:
                highest = max([highest, *_scheduled(own_groups[entry.group]).values()])
                _check_not_zero(highest, entry.group)
            bound = _rate(entry, group, highest)
        state[entry.key] = {
            "step": torch.tensor(entry.step, dtype=torch.float32, device="cpu"),
            **entry.tensors,
            "exp_avg_lr": bound,
        }
    return {"state": state, "param_groups": converted}


def _other_entries(group: Group, form: Format) -> Group:
    """What a group holds that is not the optimizer's: params, names, a scheduler's numbers."""
    return {
        name: copy.deepcopy(plain_numbers(value) if isinstance(value, Tensor) else value)
        for name, value in group.items()
        if name not in form.unused
    }


def _templates(groups: list[Group], optimizer: AdaMod | None) -> list[Group]:
    """What each group falls back on: the optimizer's group, or AdaMod's defaults."""
    if optimizer is None:
        # Those of an instance, since only it knows all hyperparameters that a state dict needs.
        return [AdaMod([torch.empty(0, dtype=torch.float32, device="cpu")]).defaults] * len(groups)
    if not isinstance(optimizer, AdaMod):
        raise TypeError(
            f"optimizer must be the AdaMod to go on with, got {type(optimizer).__name__}; what "
            "another optimizer saved is the first argument"
        )
    sizes = [len(group["params"]) for group in groups]
    own_sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != own_sizes:
        raise ValueError(
            f"the state dict has param groups of {sizes} parameters, the optimizer of {own_sizes}; "
            "build the optimizer with the groups of the one that was saved"
        )
    return [{name: group[name] for name in optimizer.defaults} for group in optimizer.param_groups]


def _for_each_group(name: str, given: Any, groups: list[Group]) -> Sequence[Any]:
    """An argument that is one number for all groups or a list of one for each, as a list."""
    numbers: Any = plain_numbers(given)
    if not isinstance(numbers, (tuple, list)):
        return [numbers] * len(groups)
    if len(numbers) != len(groups):
        raise ValueError(
            f"{name} has {len(numbers)} numbers, the state dict {len(groups)} param groups; "
            "give one for each, or one number for all"
        )
    return numbers


def _decays(
    groups: list[Group], form: Format, given: float | Sequence[float] | None
) -> Sequence[float]:
    if given is not None:
        return _for_each_group("weight_decay", given, groups)
    saved = [plain_numbers(group["weight_decay"]) for group in groups]
    for index, group in enumerate(groups):
        reason = form.other_decay(group) if saved[index] != 0 else None
        if reason:
            raise ValueError(
                f"weight_decay={saved[index]!r} of param group {index} {reason}; AdaMod's is "
                "decoupled and times lr: say which to go on with, weight_decay=0.0 for all "
                f"groups or one for each, such as the saved numbers: weight_decay={saved}"
            )
    return saved


def _scheduled(group: Group) -> Group:
    """What a group has of lr and initial_lr, a scheduler's, as numbers."""
    return {name: plain_numbers(group[name]) for name in ("lr", "initial_lr") if name in group}


def _learning_rates(group: Group, own: Group, given: Any) -> Group:
    """lr and initial_lr to go on with, of those saved, the optimizer's own and a given lr."""
    saved, known = _scheduled(group), _scheduled(own)
    if given is None:
        if saved["lr"] != 0 or not known:
            return saved
        given = known["lr"]
    if "initial_lr" not in saved | known:
        return {"lr": given}
    return {"lr": given, "initial_lr": known.get("initial_lr", given)}


def _check_not_zero(lr: float, index: int) -> None:
    if lr == 0:
        raise ValueError(
            f"param group {index} was saved at lr 0, as at the end of a schedule, and its bound "
            "would start at 0 and hold the run back; give lr, the one to go on with (a number, or "
            "a list with one for each group), or optimizer, an AdaMod that has it; "
            "bound_init='zero' starts a warm-up instead"
        )


def _rate(entry: ParamState, group: Group, lr: float) -> Tensor:
    """The rate of each element at the last step, had it been done with ``lr``."""
    rule = AdaMod.rule
    hyperparameters = {name: group[name] for name in _PREPARED} | {"lr": lr}
    scalars = rule.prepare(entry.step, **hyperparameters)
    return rule.adaptive_rate(scalars, entry.tensors["exp_avg_sq"])


def export(
    state_dict: Mapping[str, Any] | AdaMod,
    target: str = "torch",
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    capturable: bool = False,
) -> StateDict:
    """Makes a state dict for ``torch.optim.AdamW.load_state_dict`` of AdaMod's.

    The bound is dropped, so AdamW steps every element at its full adaptive rate: the first steps
    are longer where the bound was at work, and a lower lr may be wanted. The released variant's
    eps stands where AdamW's does after the first steps only.

    Args:
        state_dict: what ``AdaMod.state_dict()`` returned, or the optimizer itself. It is not
            changed, and no tensor is shared with it.
        target: ``"torch"``, for ``torch.optim.AdamW``. Default: "torch".
        foreach: as for AdamW, whose ``load_state_dict`` takes over this one. Default: None.
        fused: likewise. Default: None.
        capturable: likewise. Default: False.

    Returns:
        A state dict with copies of the states.

    Raises:
        TypeError: an entry of the state dict of a wrong type.
        ValueError: another target; a state dict that is not AdaMod's or not whole.

    Example:
        >>> import torch
        >>> from adamod_fused import AdaMod, checkpoint
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = AdaMod(model.parameters(), weight_decay=0.1)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> adamw = torch.optim.AdamW(model.parameters())
        >>> adamw.load_state_dict(checkpoint.export(optimizer))
        >>> adamw.step()
    """
    check_choice("target", target, ("torch",))
    saved = state_dict.state_dict() if isinstance(state_dict, AdaMod) else state_dict
    groups = check_structure(saved)
    check_groups(groups, ADAMOD)
    defaults = torch.optim.AdamW([torch.empty(0, dtype=torch.float32, device="cpu")]).defaults
    options = {"foreach": foreach, "fused": fused, "capturable": capturable}
    exported = [
        {
            **_other_entries(group, ADAMOD),
            **defaults,
            **ADAMOD.hyperparameters(group),
            **options,
            "decoupled_weight_decay": True,  # which torch 2.6 does not say by itself
        }
        for group in groups
    ]
    state = {
        entry.key: {
            "step": torch.tensor(entry.step, dtype=torch.float32, device="cpu"),
            "exp_avg": entry.tensors["exp_avg"],
            "exp_avg_sq": entry.tensors["exp_avg_sq"],
        }
        for entry in read_states(saved, groups, ADAMOD)
    }
    return {"state": state, "param_groups": exported}
