"""State dicts of coded states that are written in place: restored whole, or an error."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import (
    OPTIONS,
    STATES,
    assert_same_bits,
    assert_same_training,
    params_of,
    set_random_grads,
    train,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from adamod_fused import AdaMod
from adamod_fused.formats import STATE_FORMATS

CODED = [("8bit", "plain"), ("16bit", "plain"), ("8bit", "split")]
MESSAGE = r"step of parameter 0 .* written in place .* copy.*load_state_dict"


def make(formats: tuple[str, str], seed: int = 0, steps: int = 2) -> tuple[nn.Module, AdaMod]:
    """A weight that is coded, and a bias that is small and is not."""
    torch.manual_seed(seed)
    model = nn.Linear(8, 8, dtype=torch.bfloat16 if formats[1] == "split" else torch.float32)
    keywords = {"state_format": formats[0], "weight_format": formats[1], "min_coded_numel": 64}
    optimizer = AdaMod(model.parameters(), **OPTIONS, **keywords)
    train(optimizer, range(seed, seed + steps))
    return model, optimizer


def load_in_place(state_dict: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.load(state_dict, checkpoint_id=folder)


def save(state_dict: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state_dict, checkpoint_id=folder)
    return folder


def assert_same_states(actual: AdaMod, expected: AdaMod) -> None:
    for a, b in zip(params_of(actual), params_of(expected), strict=True):
        assert actual.state[a].keys() == expected.state[b].keys()
        for name, value in expected.state[b].items():
            assert_same_bits(actual.state[a][name], value, name)


@pytest.mark.parametrize("formats", CODED, ids=" ".join)
def test_a_step_after_a_load_in_place_alone_raises(
    formats: tuple[str, str], tmp_path: Path
) -> None:
    _, source = make(formats)
    _, target = make(formats, seed=1, steps=3)
    folder = save(source.state_dict(), tmp_path)
    weight, _ = params_of(target)
    before = copy.deepcopy(target.state[weight])
    load_in_place(target.state_dict(), folder)  # the dict is gone afterwards
    for name, value in before.items():
        assert_same_bits(target.state[weight][name], value, name)
    weights = copy.deepcopy(params_of(target))
    set_random_grads(params_of(target), 9)
    for _ in range(2):
        for step in (target.step, lambda: target.clip_grad_norm_(1.0)):
            with pytest.raises(RuntimeError, match=MESSAGE):
                step()
    for a, b in zip(params_of(target), weights, strict=True):
        assert_same_bits(a, b)

    state_dict = target.state_dict()  # as a later look is not to forget of it
    with pytest.raises(RuntimeError, match=MESSAGE):
        target.step()
    load_in_place(state_dict, folder)
    target.load_state_dict(state_dict)
    assert_same_states(target, source)
    train(target, range(2))


def test_the_way_on_without_what_was_written() -> None:
    _, optimizer = make(("8bit", "plain"))
    _, twin = make(("8bit", "plain"))
    optimizer.state_dict()["state"][0]["step"].zero_()
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, range(2))
    train(twin, range(2))
    assert_same_training(optimizer, twin)


@pytest.mark.parametrize("before", ["fp32", "16bit", "8bit"])
@pytest.mark.parametrize("after", ["fp32", "16bit", "8bit"])
def test_a_state_dict_that_another_optimizer_loads_and_steps(
    before: str, after: str, tmp_path: Path
) -> None:
    """Its steps are no writes to the copies in the dict; a load in place is one."""
    _, source = make((before, "plain"))
    _, other = make((after, "plain"), seed=1, steps=3)
    _, twin = make((after, "plain"), seed=1, steps=3)
    folder = save(source.state_dict(), tmp_path)
    state_dict = source.state_dict()
    twin.load_state_dict(copy.deepcopy(state_dict))
    other.load_state_dict(state_dict)
    assert_same_states(other, twin)
    train(other, range(1))
    train(source, range(1))
    state_dict = source.state_dict()
    other.load_state_dict(state_dict)
    load_in_place(state_dict, folder)
    if before == "fp32":
        source.step()  # it was restored
    else:
        with pytest.raises(RuntimeError, match=MESSAGE):
            source.step()
    other.step()


def test_reading_a_state_dict_raises_nothing() -> None:
    _, optimizer = make(("8bit", "split"))
    kept = optimizer.state_dict()
    copied = copy.deepcopy(kept)
    copied["state"][0]["exp_avg"].zero_()
    torch.save(optimizer.state_dict(), io.BytesIO())
    train(optimizer, range(3))
    kept["state"][0]["step"].add_(1)
    kept["state"][0]["exp_avg"].add_(1)
    kept["state"][0]["exp_avg_sq"].add_(1)
    kept["state"][0]["exp_avg_lr"].add_(1)
    kept["state"][0]["param_remainder"].zero_()
    with pytest.raises(RuntimeError, match="written in place"):  # steps later too
        train(optimizer, range(1))


def test_what_a_hook_of_the_user_writes_is_no_load() -> None:
    _, optimizer = make(("8bit", "plain"))

    def write(_: AdaMod, made: dict[str, Any]) -> None:
        made["state"][0]["exp_avg"].zero_()

    optimizer.register_state_dict_post_hook(write)
    assert not optimizer.state_dict()["state"][0]["exp_avg"].any()
    train(optimizer, range(1))


def test_witnesses_hold_no_memory_and_do_not_pile_up() -> None:
    _, optimizer = make(("8bit", "plain"))
    for _ in range(3):
        optimizer.state_dict()
    held = optimizer._copies._copies
    assert len(held) == len(("step", *STATES))
    assert all(copied.witness.untyped_storage().nbytes() == 0 for copied in held)
    train(optimizer, range(1))
    assert not optimizer._copies


@pytest.mark.parametrize("formats", [*CODED, ("fp32", "plain")], ids=" ".join)
@pytest.mark.parametrize("way", ["stateful", "by name", "flat", "load_state_dict"])
def test_ways_that_restore_all(way: str, formats: tuple[str, str], tmp_path: Path) -> None:
    model, source = make(formats)
    other, target = make(formats, seed=1, steps=3)
    if way in ("by name", "flat"):
        options = StateDictOptions(flatten_optimizer_state_dict=way == "flat")
        folder = save(get_optimizer_state_dict(model, source, options=options), tmp_path)
        state_dict = get_optimizer_state_dict(other, target, options=options)
        load_in_place(state_dict, folder)
        set_optimizer_state_dict(other, target, state_dict, options=options)
    elif way == "stateful":
        folder = save({"optimizer": source}, tmp_path)
        load_in_place({"optimizer": target}, folder)
    else:
        folder = save(source.state_dict(), tmp_path)
        state_dict = target.state_dict()
        load_in_place(state_dict, folder)
        target.load_state_dict(state_dict)
    assert_same_states(target, source)
    train(target, range(1))


STORED = [(state, weight) for state in STATE_FORMATS for weight in ("plain", "split")]


@pytest.mark.parametrize("after", STORED, ids=" ".join)
@pytest.mark.parametrize("before", STORED, ids=" ".join)
def test_flat_state_dicts_load_into_every_format(
    before: tuple[str, str], after: tuple[str, str]
) -> None:
    """As nested ones do: torch fills up what the live optimizer's format has and the dict lacks."""
    torch.manual_seed(0)
    states: list[dict[str, torch.Tensor]] = []
    for flat in (False, True):
        models = [nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(2)]
        optimizers = [
            AdaMod(
                model.parameters(),
                **OPTIONS,
                state_format=state,
                weight_format=weight,
                min_coded_numel=64,
            )
            for model, (state, weight) in zip(models, (before, after), strict=True)
        ]
        for optimizer in optimizers:
            train(optimizer, range(2))
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        saved = get_optimizer_state_dict(models[0], optimizers[0], options=options)
        train(optimizers[1], range(3))
        set_optimizer_state_dict(models[1], optimizers[1], saved, options=options)
        states += [dict(optimizers[1].state[param]) for param in params_of(optimizers[1])]
        train(optimizers[1], range(1))
    for nested, flattened in zip(states[:2], states[2:], strict=True):
        assert nested.keys() == flattened.keys()
        assert set(STATES) < nested.keys()
        assert nested["step"] == flattened["step"] == 3


def test_a_flat_state_dict_that_is_not_whole() -> None:
    model, optimizer = make(("8bit", "plain"))
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    del saved["state.weight.exp_avg"]
    with pytest.raises(ValueError, match="parameter 0 of group 0 lacks exp_avg"):
        set_optimizer_state_dict(model, optimizer, saved, options=options)
    rest = {name: value for name, value in saved.items() if not name.startswith("state.weight")}
    set_optimizer_state_dict(model, optimizer, rest, options=options)
    assert not optimizer.state[model.weight]  # as a nested one without it
    assert optimizer.state[model.bias]["step"] == 2
    train(optimizer, range(1))
