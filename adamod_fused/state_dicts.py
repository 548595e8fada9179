"""State dicts hold values: whether one fits an optimizer, its states as codes, codes as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import coded_states, execution, formats, validation, value_checks
from .dtensor import local, wrapped
from .fake import check_values, has_values, mode_of
from .layout import dense_strides, laid_out

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer

Whose = tuple[Tensor, dict[str, Any], str, dict[str, Any]]
"""A parameter, its entries in a state dict, its label and its group."""

LIVE = (*execution.DEFAULTS, *formats.LIVE)
"""Keywords of a param group that a state dict neither brings nor takes away."""

MAX_DEPTH = 100


def check_structure(state_dict: Any) -> list[dict[str, Any]]:
    """The param groups of what is an optimizer's state dict.

    Raises:
        TypeError, ValueError: it is none, lists a parameter twice or has text for its number.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"a state dict is a dict, got {type(state_dict).__name__}")
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(
                f"the state dict lacks {key!r} (it has {listed(state_dict) or 'nothing'}); give "
                "what an optimizer's state_dict() returned, in many files checkpoint['optimizer']"
            )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not isinstance(groups, (list, tuple)):
        raise TypeError(
            "the state dict must hold a dict as 'state' and a list as 'param_groups', got "
            f"{type(state).__name__} and {type(groups).__name__}"
        )
    seen: set[int | str] = set()
    for index, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
            raise ValueError(f"param group {index} of the state dict has no list 'params'")
        for key in group["params"]:
            if not isinstance(key, (int, str)):
                raise TypeError(
                    f"param group {index} of the state dict lists a {type(key).__name__} in "
                    "'params', which holds the numbers or names of parameters"
                )
            if key in seen:
                raise ValueError(
                    f"the state dict lists parameter {key!r} twice; each belongs to one param group"
                )
            seen.add(key)
            if not isinstance(state.get(key, {}), Mapping):
                raise TypeError(
                    f"the state of parameter {key!r} must be a dict, got "
                    f"{type(state[key]).__name__}"
                )
    texts = (key for key in state if isinstance(key, str) and key not in seen)
    text = next((key for key in texts if key.isdecimal() and int(key) in seen), None)
    if text is not None:
        raise ValueError(
            f"the state dict has the state of parameter {int(text)} under the text {text!r}, as "
            "JSON makes of keys, where it would be ignored; make numbers of them with int()"
        )
    _check_depth(state_dict)
    return list(groups)


def listed(names: Iterable[Any]) -> str:
    """The first few of many names."""
    names = [str(name) for name in names]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _check_depth(value: Any) -> None:
    """Raises where containers are nested so deeply that a copy would exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [v.values() if isinstance(v, Mapping) else v for v in level]
        held = (v for each in inner for v in each if isinstance(v, (Mapping, list, tuple)))
        level = list({id(v): v for v in held}.values())
        if not level:
            return
    raise ValueError(
        f"the state dict has an entry of more than {MAX_DEPTH} containers within each other; take "
        "it out"
    )


def match(
    optimizer: FusedOptimizer, state_dict: dict[str, Any]
) -> list[tuple[Tensor, dict[str, Any]]]:
    """Parameters with the state that a state dict holds for them, where it holds any."""
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    saved = state_dict["state"]
    pairs = [
        (param, _without_gaps(optimizer, saved[i]))
        for i, param in zip(ids, params, strict=True)
        if saved.get(i)
    ]
    return [(param, entries) for param, entries in pairs if entries]


def _without_gaps(optimizer: FusedOptimizer, entries: Any) -> Any:
    """Entries without those of ours for which a flat state dict had no value.

    Torch asks a flat state dict for the entries that the live optimizer keeps, which depend on its
    formats, and puts ``{}`` where there is none.
    """
    if not isinstance(entries, dict):
        return entries
    ours = _ours(optimizer)
    return {k: v for k, v in entries.items() if k not in ours or not isinstance(v, dict) or v}


def _ours(optimizer: FusedOptimizer) -> tuple[str, ...]:
    """What a parameter's entries are called that are not the user's own."""
    return ("step", *optimizer.rule.states, formats.EXPONENTS, formats.REMAINDER)


def check(optimizer: FusedOptimizer, state_dict: dict[str, Any]) -> list[Whose]:
    """Raises where a state dict does not fit ``optimizer``; returns whose state it holds.

    Raises:
        TypeError, ValueError: says what is missing, of another size or no value of a state, and
            what to load instead.
    """
    saved_groups = check_structure(state_dict)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"the state dict has param groups of {saved_sizes} parameters, the optimizer of "
            f"{sizes}; load a state dict saved for the same model and groups"
        )
    for index, group in enumerate(saved_groups):
        given = {**formats.DEFAULTS, **group, **execution.DEFAULTS}
        given |= {name: formats.DEFAULTS[name] for name in formats.LIVE}
        missing = [name for name in optimizer.defaults if name not in given]
        if missing:
            raise ValueError(
                f"param group {index} of the state dict lacks {', '.join(missing)}; load a "
                f"state dict that {type(optimizer).__name__} saved"
            )
        optimizer._check_group(given)
    whose = _whose(optimizer, state_dict)
    for param, saved, label, group in whose:
        validation.check_param(param, label)
        formats.formats_of(param, group, label)
        if formats.EXPONENTS in saved:
            raise ValueError(
                f"the state of {label} has {formats.EXPONENTS}: a state dict holds values and no "
                "codes; save what state_dict() returns, not the optimizer's state"
            )
        validation.check_state_entries(param, saved, optimizer.rule.states, label)
        coded_states.check_remainder(param, saved, label)
        for name, tensor in coded_states.written(saved, optimizer.rule.states):
            check_values(param, tensor, f"{name} of {label}")
    named = [(label, saved) for _, saved, label, _ in whose]
    value_checks.check_disjoint_states(optimizer.rule, named)
    value_checks.check(optimizer.rule, named)
    return whose


def _whose(optimizer: FusedOptimizer, state_dict: dict[str, Any]) -> list[Whose]:
    """Parameters with the state that a state dict holds for them, their label and their group."""
    known = {param: (who, group) for param, who, group in _labelled(optimizer)}
    return [(param, saved, *known[param]) for param, saved in match(optimizer, state_dict)]


def _labelled(optimizer: FusedOptimizer) -> Iterator[tuple[Tensor, str, dict[str, Any]]]:
    """All parameters, each with its label and its group."""
    for g, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group["params"]):
            yield param, validation.label(g, i, group), group


def _checked_entries(
    optimizer: FusedOptimizer, state_dict: dict[str, Any]
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Parameters with their entries of a state dict, as the optimizer keeps them.

    Raises:
        TypeError, ValueError: as ``check``.
    """
    whose = check(optimizer, state_dict)
    steps = _on_host([saved["step"] for _, saved, _, _ in whose])
    loaded = []
    for (param, saved, label, group), step in zip(whose, steps, strict=True):
        stored = formats.formats_of(param, group, label)
        with mode_of(param):
            kept = _as_kept(optimizer.rule, param, {**saved, "step": step}, stored)
        loaded.append((param, kept))
    return loaded


def _on_host(steps: list[Any]) -> list[Any]:
    """Step counts with those of one device brought to the CPU by one copy."""
    on_device = {
        i: step
        for i, step in enumerate(steps)
        if isinstance(step, Tensor) and step.device.type != "cpu" and has_values(step)
    }
    given = list(steps)
    for device in {step.device for step in on_device.values()}:
        places = [i for i, step in on_device.items() if step.device == device]
        stacked = torch.stack([on_device[i].float().reshape(()) for i in places]).cpu()
        for i, step in zip(places, stacked, strict=True):
            given[i] = step.clone()
    return given


def _as_kept(
    rule: Any, param: Tensor, saved: dict[str, Any], stored: formats.Formats
) -> dict[str, Tensor]:
    """A parameter's entries of a state dict in the formats ``stored``.

    Either all tensors of the dict are taken over, or none, so that later steps cannot leave the
    dict with a new step count and old states.
    """
    step = torch.as_tensor(saved["step"], dtype=torch.float32, device="cpu")
    given = {
        name: saved[name].to(param.device)
        for name in (*rule.states, formats.REMAINDER)
        if name in saved
    }
    if stored.are_plain:
        dtype = coded_states.state_dtype(param, stored)
        entries = {name: _without_holes(given[name].to(dtype)) for name in rule.states}
    else:
        layout = dense_strides(local(param))
        entries = coded_states.in_formats(rule, param, given, stored, layout)
    are_taken_over = all(entries[name] is saved.get(name) for name in entries)
    own = _with_own_version if are_taken_over else torch.clone
    kept = {n: own(value) if value is saved.get(n) else value for n, value in entries.items()}
    return {"step": own(step).reshape(()), **kept}


def _with_own_version(tensor: Tensor) -> Tensor:
    """The same memory with a version counter of its own.

    The tensor may be a copy that another optimizer watches (copies.py). What this optimizer writes
    is then no write to that copy.
    """
    return wrapped(local(tensor).data, tensor)


def _without_holes(state: Tensor) -> Tensor:
    """``state`` itself where its memory holds its elements alone, as they are, or else a copy."""
    shard = local(state)
    if not validation.is_plain(shard):
        return state
    dense = laid_out(shard, dense_strides(shard))
    return state if dense is shard else wrapped(dense, state)


@contextmanager
def loading(optimizer: FusedOptimizer) -> Iterator[None]:
    """While it lasts, ``load_state_dict`` checks what it is given and keeps what it should.

    From the check to the restoration no other call may run. Hooks of the user's run before and
    after that, so that they may call what they like.

    Raises:
        TypeError, ValueError: as ``check``, from ``load_state_dict``.
        RuntimeError: another call is running.
    """
    holds: list[object] = []
    loaded: list[tuple[Tensor, dict[str, Tensor]]] = []
    live = [{name: group[name] for name in LIVE} for group in optimizer.param_groups]

    def check(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        holds.append(optimizer._exclusion.of("load_state_dict()"))
        loaded.extend(_checked_entries(optimizer, given))
        # torch would cast all states to their parameters' dtype before `restore` drops them.
        ours = _ours(optimizer)
        state = dict(given["state"])
        for i in chain.from_iterable(group["params"] for group in given["param_groups"]):
            if state.get(i):
                state[i] = {name: state[i][name] for name in state[i] if name not in ours}
        return {**given, "state": state}

    def restore(_: Any) -> None:
        for param, entries in loaded:
            optimizer.state[param].update(entries)
        for group, keywords in zip(optimizer.param_groups, live, strict=True):
            group.update(keywords)
        if optimizer._release is not None:
            optimizer._release.forget()
        holds.clear()

    handles = (
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(restore, prepend=True),
    )
    try:
        yield
    finally:
        holds.clear()  # where restore did not run
        for handle in handles:
            handle.remove()


@contextmanager
def decoding(optimizer: FusedOptimizer) -> Iterator[list[tuple[str, Tensor]]]:
    """While it lasts, ``state_dict`` has values in place of codes, for hooks of the user's too.

    It gives a list that names the tensors which are not the optimizer's own.

    Raises:
        TypeError, ValueError: states and block exponents do not belong together.
    """
    copies: list[tuple[str, Tensor]] = []

    def decode(_: Any, made: dict[str, Any]) -> None:
        ids = chain.from_iterable(group["params"] for group in made["param_groups"])
        saved = made["state"]
        for i, (param, who, _) in zip(ids, _labelled(optimizer), strict=True):
            if own := saved.get(i):
                saved[i] = coded_states.to_save(optimizer.rule, param, own, who)
                copies.extend(
                    (f"{name} of {who}", value)
                    for name, value in saved[i].items()
                    if value is not own.get(name)
                )

    handle = optimizer.register_state_dict_post_hook(decode, prepend=True)
    try:
        yield copies
    finally:
        handle.remove()
