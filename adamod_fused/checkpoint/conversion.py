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
    beta3: float | None = None,
    variant: str | None = None,
    weight_decay: float | Sequence[float] | None = None,
    maximize: bool | None = None,
) -> StateDict:
    r"""Makes a state dict for ``AdaMod.load_state_dict`` of one that another optimizer saved.

    Moments, step counts, lr, betas and eps go over as they are, and so does what else the param
    groups hold, such as ``param_names`` or a scheduler's ``initial_lr``. What Adam does not have,
    the bound, starts at the rate that Adam's last step had,

    .. math::
        s_t = \mathrm{lr} / (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)

    or its released form, so that a run in flight goes on at its speed. An element whose gradient
    was always zero has the rate lr/eps there, and stays unbounded until that has been averaged
    out. If lr is 0 in the state dict, so are the bounds: a warm-up.

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
            the source does not have: beta3 and variant for Adam, maximize for the AdaMods.
            Default: None.
        bound_init: ``"current"`` goes on: the bound is the saved one, and for Adam the current
            rate; ``"zero"`` starts the bound's warm-up anew. Default: "current".
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
            coupled or not multiplied by lr and no ``weight_decay`` given.

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
    converted = [
        {
            **_other_entries(group, form),
            **template,
            **form.hyperparameters(group),
            **given,
            "weight_decay": decay,
        }
        for group, template, decay in zip(
            groups, _templates(groups, optimizer), decays, strict=True
        )
    ]
    for index, group in enumerate(converted):
        try:
            AdaMod.check_hyperparameters(group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param group {index}: {error}") from None
    state = {}
    for entry in read_states(state_dict, groups, form):
        bound = _bound(entry, converted[entry.group], bound_init)
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
        return [AdaMod([torch.empty(0)]).defaults] * len(groups)
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


def _decays(
    groups: list[Group], form: Format, given: float | Sequence[float] | None
) -> Sequence[float]:
    saved = [plain_numbers(group["weight_decay"]) for group in groups]
    if given is None:
        for index, group in enumerate(groups):
            reason = form.other_decay(group) if saved[index] != 0 else None
            if reason:
                raise ValueError(
                    f"weight_decay={saved[index]!r} of param group {index} {reason}; AdaMod's is "
                    "decoupled and times lr: say which to go on with, weight_decay=0.0 for all "
                    f"groups or one for each, such as the saved numbers: weight_decay={saved}"
                )
        return saved
    decays: Any = plain_numbers(given)
    if not isinstance(decays, (tuple, list)):
        return [decays] * len(groups)
    if len(decays) != len(groups):
        raise ValueError(
            f"weight_decay has {len(decays)} numbers, the state dict {len(groups)} param groups; "
            "give one for each, or one number for all"
        )
    return decays


def _bound(entry: ParamState, group: Group, bound_init: str) -> Tensor:
    exp_avg_sq = entry.tensors["exp_avg_sq"]
    if bound_init == "zero" or entry.step == 0:  # before the first step there is no rate
        return torch.zeros_like(exp_avg_sq)
    if "exp_avg_lr" in entry.tensors:
        return entry.tensors["exp_avg_lr"]
    rule = AdaMod.rule
    scalars = rule.prepare(entry.step, **{name: group[name] for name in _PREPARED})
    return rule.adaptive_rate(scalars, exp_avg_sq)


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
    defaults = torch.optim.AdamW([torch.empty(0)]).defaults
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
