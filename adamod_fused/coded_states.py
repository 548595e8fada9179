"""States between values and codes: what a state dict holds and what a step works on.

Values become codes by rounding to the nearest; what codes stand for is coded again exactly,
whatever the blocks. Of DTensors each rank codes its own elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import codes, coding, finite, validation
from .dtensor import is_dtensor, local, same_sharding, wrapped
from .fake import mode_of
from .formats import EXPONENTS, REMAINDER, STATE_FORMATS, Formats
from .layout import dense_strides, in_memory_order, laid_out, lies_as
from .reference import COMPUTE_DTYPES

Entries = dict[str, Any]

_NUMEL = "coded_numel"
"""An attribute of block exponents: the elements that they were made for. The number of blocks alone
does not tell when up to 31 elements are cut. Pickles of older versions and copies on another device
lack it."""

_REMEDY = (
    "load a state_dict, which holds values, and edit states by value: optimizer.state_values(), "
    "optimizer.replace_param()"
)


def are_coded(entries: Entries, names: Sequence[str], who: str = "a parameter") -> bool:
    """Whether a parameter's states are codes.

    Raises:
        TypeError: there are block exponents for a state that holds no codes, or codes of another
            format than the first.
    """
    if not isinstance(entries, dict) or EXPONENTS not in entries:
        return False
    first = None
    for name in names:
        if name not in entries:  # `validation.check_state_entries` names all that is missing
            continue
        state = entries[name]
        dtype = state.dtype if isinstance(state, Tensor) else type(state)
        first = first or dtype
        if dtype not in coding.VALUE_DTYPES or dtype != first:
            raise TypeError(
                f"{name} of {who} has dtype {dtype} beside {EXPONENTS}, which belong to codes: "
                "torch.uint8 or torch.int16, the same for every state. Code numbers are no "
                "values: do not convert them, and read and write states by value with "
                "optimizer.state_values(param); load a state_dict to restore these"
            )
    return True


def written(entries: Entries, names: Sequence[str]) -> Iterable[tuple[str, Tensor]]:
    """The names and tensors among a parameter's entries that a step writes."""
    found = ((name, entries.get(name)) for name in ("step", *names, EXPONENTS, REMAINDER))
    return ((name, value) for name, value in found if isinstance(value, Tensor))


def state_dtype(param: Tensor, formats: Formats) -> torch.dtype:
    """The dtype that a parameter's states have in ``formats``."""
    if not formats.codes_states:
        return COMPUTE_DTYPES[param.dtype]
    return codes.CODE_DTYPES[STATE_FORMATS[formats.state]]


def check(
    param: Tensor,
    entries: Entries,
    names: Sequence[str],
    who: str,
    stored: Formats | None = None,
) -> None:
    """Raises where a parameter's states are not what a step or ``load_state_dict`` made.

    Where the next step codes them, which is what ``stored`` tells, they may also be values as a
    state dict has them: ``ZeroRedundancyOptimizer`` puts those into ``state`` itself.
    """
    coded = are_coded(entries, names, who)
    dtypes = [COMPUTE_DTYPES[param.dtype]]
    if coded and names[0] in entries:
        dtypes = [entries[names[0]].dtype]
    elif stored is not None and stored.codes_states:
        dtypes.append(coding.VALUE_DTYPES[state_dtype(param, stored)])
    validation.check_states(param, entries, names, dtypes, who)
    check_remainder(param, entries, who, (torch.int16,))
    if REMAINDER in entries:
        validation.check_state_device(param, entries[REMAINDER], f"{REMAINDER} of {who}")
        validation.check_memory(entries[REMAINDER], f"{REMAINDER} of {who}")
    if coded:
        check_codes(entries, names, who, local(param).device)


def check_codes(
    entries: Entries, names: Sequence[str], who: str, device: torch.device | None = None
) -> None:
    """Raises where codes and their exponents do not belong together, or are not on ``device``."""
    if missing := [name for name in names if name not in entries]:
        raise ValueError(f"the state of {who} lacks {', '.join(missing)}; {_REMEDY}")
    shards = [local(entries[name]) for name in names]
    layout, device = dense_strides(shards[0]), device or shards[0].device
    if not all(s.shape == shards[0].shape and lies_as(s, layout) for s in shards):
        raise ValueError(
            f"the codes of {who} do not lie in memory alike, and so share no blocks (shapes "
            f"{[tuple(shard.shape) for shard in shards]}, strides "
            f"{[shard.stride() for shard in shards]}); {_REMEDY}"
        )
    exponents, numel = entries[EXPONENTS], shards[0].numel()
    wanted = codes.num_blocks(numel), len(names)
    if (
        not isinstance(exponents, Tensor)
        or exponents.dtype is not torch.uint8
        or exponents.device != device
        or exponents.shape != wanted
        or not exponents.is_contiguous()
    ):
        raise ValueError(
            f"{EXPONENTS} of {who} must be contiguous, torch.uint8, on {device} and of "
            f"shape {wanted}, one for each {codes.BLOCK} elements of each state, got "
            f"{_described(exponents)}; {_REMEDY}"
        )
    known = getattr(exponents, _NUMEL, numel)
    if known != numel:
        raise ValueError(
            f"{EXPONENTS} of {who} belong to states of {known} elements, and the states have "
            f"{numel}: rows that were cut or added stand in other blocks now; {_REMEDY}"
        )
    validation.check_memory(exponents, f"{EXPONENTS} of {who}")


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return validation.shown(value)
    return f"{value.dtype}, {value.device}, {tuple(value.shape)}, strides {value.stride()}"


def check_remainder(
    param: Tensor,
    entries: Entries,
    who: str,
    dtypes: Sequence[torch.dtype] = (torch.int16, torch.int32),
) -> None:
    """Raises where what is kept of a split weight does not fit its parameter."""
    if REMAINDER not in entries:
        return
    remainder = entries[REMAINDER]
    if (
        not isinstance(remainder, Tensor)
        or remainder.dtype not in dtypes
        or remainder.shape != param.shape
        or not same_sharding(param, remainder)
        or local(remainder).shape != local(param).shape
    ):
        raise ValueError(
            f"{REMAINDER} of {who} must be torch.int16, of the parameter's shape "
            f"{tuple(param.shape)} and cut as it is, got {_described(remainder)}; load a "
            "state_dict saved for the same model, or leave the entry out: the lower halves of the "
            "weights are then 0"
        )


def check_exponents(named: Iterable[tuple[str, Entries]], names: Sequence[str]) -> None:
    """Raises where a block's exponent is none that a step writes; waits once for each device."""
    named = [(who, entries) for who, entries in named if are_coded(entries, names)]
    bad = [(e[EXPONENTS] == 0).any() | (e[EXPONENTS] == 255).any() for _, e in named]
    for (who, entries), is_bad in zip(named, finite.as_booleans(bad), strict=True):
        if is_bad:
            exponents = entries[EXPONENTS]
            block, k = ((exponents == 0) | (exponents == 255)).nonzero()[0].tolist()
            first, last = (
                block * codes.BLOCK,
                min((block + 1) * codes.BLOCK, _numel(entries, names)),
            )
            raise ValueError(
                f"{EXPONENTS} of {who} is {int(exponents[block, k])} for {names[k]} in block "
                f"{block} (elements {first} to {last - 1} in memory), and lies in [1, 254]: its "
                "memory was overwritten; load a state_dict"
            )


def _numel(entries: Entries, names: Sequence[str]) -> int:
    return local(entries[names[0]]).numel()


@torch.no_grad()
def to_values(rule: Any, param: Tensor, entries: Entries, who: str = "a parameter") -> Entries:
    """A parameter's entries with values instead of codes, exact, or ``entries`` themselves.

    Raises:
        TypeError, ValueError: states and block exponents do not belong together; ``who`` names the
            parameter.
    """
    if not are_coded(entries, rule.states, who):
        return entries
    check_codes(entries, rule.states, who)
    coded = [local(entries[name]) for name in rule.states]
    values = [torch.empty_like(shard, dtype=coding.VALUE_DTYPES[shard.dtype]) for shard in coded]
    flat, out = ([in_memory_order(t) for t in tensors] for tensors in (coded, values))
    with mode_of(param):
        coding.decode(rule.values, flat, entries[EXPONENTS], out)
    others = {name: value for name, value in entries.items() if name != EXPONENTS}
    return others | {
        name: wrapped(value, param) for name, value in zip(rule.states, values, strict=True)
    }


@torch.no_grad()
def are_finite(rule: Any, entries: Entries, who: str) -> dict[str, Tensor]:
    """Whether all values of each state are finite, by name: 0-dim, boolean.

    Raises:
        TypeError, ValueError: as ``to_values``.
    """
    if not are_coded(entries, rule.states, who):
        return {n: finite.is_finite(entries[n]) for n in rule.states if n in entries}
    check_codes(entries, rule.states, who)
    coded = [in_memory_order(local(entries[name])) for name in rule.states]
    found = coding.are_finite(rule.values, coded, entries[EXPONENTS])
    return dict(zip(rule.states, found, strict=True))


@torch.no_grad()
def to_save(rule: Any, param: Tensor, entries: Entries, who: str) -> Entries:
    """A parameter's entries for a state dict: values, and nothing that cannot be gathered.

    Where states are codes, all is a copy: what loads in place restores all of a parameter or none.
    """
    saved = to_values(rule, param, entries, who)
    if REMAINDER in saved and is_dtensor(param):  # NCCL and gloo send no int16
        wide = wrapped(local(saved[REMAINDER]).to(torch.int32), param)
        saved = saved | {REMAINDER: wide}
    if are_coded(entries, rule.states, who):
        own = [name for name in ("step", REMAINDER) if name in saved]
        saved |= {name: saved[name].clone() for name in own if saved[name] is entries[name]}
    return saved


@torch.no_grad()
def in_formats(
    rule: Any, param: Tensor, entries: Entries, formats: Formats, layout: tuple[int, ...]
) -> Entries:
    """The states of a parameter, and what comes with them, as ``formats`` and ``layout`` say.

    Tensors that are so already are taken over.

    Args:
        rule: a rule of ``reference.py``.
        param: the parameter.
        entries: codes or values of any dtype of floating point, on its device.
        formats: to be in.
        layout: strides, of a DTensor those of its local tensor.
    """
    dtype = state_dtype(param, formats)
    made: Entries = {}
    if formats.codes_states:
        made = _as_codes(rule, param, entries, dtype, layout)
    else:
        values = to_values(rule, param, entries)
        for name in rule.states:
            made[name] = _laid_out(values[name], param, layout, dtype)
    if formats.splits_weights:
        if REMAINDER in entries:
            made[REMAINDER] = _laid_out(entries[REMAINDER], param, layout, torch.int16)
        else:
            shard = torch.zeros_like(local(param), dtype=torch.int16)
            made[REMAINDER] = wrapped(laid_out(shard, layout), param)
    return made


def _laid_out(tensor: Tensor, param: Tensor, layout: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    shard = local(tensor)
    dense = laid_out(shard.to(dtype), layout)
    return tensor if dense is shard else wrapped(dense, param)


def _as_codes(
    rule: Any, param: Tensor, entries: Entries, dtype: torch.dtype, layout: tuple[int, ...]
) -> Entries:
    names = rule.states
    if are_coded(entries, names) and all(
        entries[name].dtype == dtype and local(entries[name]).stride() == layout for name in names
    ):
        _note_numel(entries[EXPONENTS], local(entries[names[0]]).numel())
        return {name: entries[name] for name in (*names, EXPONENTS)}
    values = to_values(rule, param, entries)
    given = [in_memory_order(laid_out(local(values[name]), layout)) for name in names]
    coded = [
        torch.empty_strided(local(param).shape, layout, dtype=dtype, device=given[0].device)
        for _ in names
    ]
    exponents = new_exponents(param, len(names))
    coding.encode(rule.values, given, [in_memory_order(tensor) for tensor in coded], exponents)
    states = {name: wrapped(tensor, param) for name, tensor in zip(names, coded, strict=True)}
    return states | {EXPONENTS: exponents}


def new_exponents(param: Tensor, num_states: int) -> Tensor:
    """Those of states of zeros: code 0 is zero whatever they are."""
    shard = local(param)
    shape = (codes.num_blocks(shard.numel()), num_states)
    exponents = torch.ones(shape, dtype=torch.uint8, device=shard.device)
    _note_numel(exponents, shard.numel())
    return exponents


def _note_numel(exponents: Tensor, numel: int) -> None:
    setattr(exponents, _NUMEL, numel)
