"""Checkpoints: exact bits in the dtypes of the states, and what stays the live optimizer's."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    STATES,
    assert_same_bits,
    assert_same_training,
    make_optimizer,
    params_of,
    set_random_grads,
    train,
)

from adamod_fused import AdaMod

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
StateDict = dict[str, Any]


def by_file(state_dict: StateDict) -> StateDict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS: dict[str, Callable[[StateDict], StateDict]] = {"memory": copy.deepcopy, "file": by_file}


@pytest.mark.parametrize("steps_before_loading", [0, 1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resumed_training_equals_uninterrupted_training(
    backend: str, dtype: torch.dtype, way: str, steps_before_loading: int
) -> None:
    whole, first = make_optimizer(dtype, backend=backend), make_optimizer(dtype, backend=backend)
    train(whole, range(5))
    train(first, range(2))
    resumed = make_optimizer(dtype, seed=9, backend=backend)
    train(resumed, range(50, 50 + steps_before_loading))
    with torch.no_grad():
        for param, saved in zip(params_of(resumed), params_of(first), strict=True):
            param.copy_(saved)
    resumed.load_state_dict(WAYS[way](first.state_dict()))
    assert_same_training(resumed, first)
    train(resumed, range(2, 5))
    assert_same_training(resumed, whole)
    resumed.load_state_dict(WAYS[way](resumed.state_dict()))  # what was loaded can be saved
    train(resumed, range(5, 6))
    train(whole, range(5, 6))
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_states_keep_bits_that_the_parameters_dtype_cannot_hold(dtype: torch.dtype) -> None:
    source, target = make_optimizer(dtype), make_optimizer(dtype)
    train(source, range(1))
    for state in source.state.values():
        for name in STATES:
            state[name].fill_(1 + 2.0**-23)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    for param in params_of(target):
        for name in STATES:
            state = target.state[param][name]
            assert_same_bits(state, torch.full(param.shape, 1 + 2.0**-23), name)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_default_dtype_does_not_change_the_states(default: torch.dtype) -> None:
    source, target = make_optimizer(), make_optimizer()
    train(source, range(2))
    torch.set_default_dtype(default)
    try:
        target.load_state_dict(by_file(source.state_dict()))
        set_random_grads(params_of(target), 2)
        target.step()
    finally:
        torch.set_default_dtype(torch.float32)
    for state in target.state.values():
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_states_in_another_dtype_are_converted() -> None:
    source, target = make_optimizer(torch.float64), make_optimizer(torch.float32)
    train(source, range(2))
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    for a, b in zip(params_of(target), params_of(source), strict=True):
        for name in STATES:
            assert_same_bits(target.state[a][name], source.state[b][name].float(), name)


@pytest.mark.parametrize(
    "step", [2, 2.0, torch.tensor(2), torch.tensor([2.0]), torch.tensor(2.0).double()], ids=repr
)
def test_steps_of_other_types_are_accepted(step: object) -> None:
    source, target = make_optimizer(), make_optimizer()
    train(source, range(2))
    state_dict = copy.deepcopy(source.state_dict())
    for state in state_dict["state"].values():
        state["step"] = copy.deepcopy(step)
    with torch.no_grad():
        for param, saved in zip(params_of(target), params_of(source), strict=True):
            param.copy_(saved)
    target.load_state_dict(copy.deepcopy(state_dict))
    assert_same_training(target, source)
    train(target, range(2, 3))
    train(source, range(2, 3))
    assert_same_training(target, source)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_that_fit_are_taken_over_as_torch_does_and_not_copied(dtype: torch.dtype) -> None:
    source, target = make_optimizer(dtype), make_optimizer(dtype, seed=1)
    train(source, range(2))
    given = source.state_dict()
    target.load_state_dict(given)
    for index, param in enumerate(params_of(target)):
        for name in ("step", *STATES):
            kept, saved = target.state[param][name], given["state"][index][name]
            assert kept.data_ptr() == saved.data_ptr(), name
            if kept.numel():
                saved.fill_(7)
                assert (kept == 7).all(), name


def test_a_state_dict_whose_states_are_converted_can_be_loaded_again() -> None:
    """A step count that the optimizer shared with the dict would go on counting there."""
    source, target = make_optimizer(torch.float64), make_optimizer(torch.float32)
    train(source, range(2))
    given = source.state_dict()
    for _ in range(2):
        target.load_state_dict(given)
        assert [int(target.state[param]["step"]) for param in params_of(target)] == [2] * 5
        train(target, range(1))


def test_parameters_without_state_stay_without_it() -> None:
    source, target = make_optimizer(), make_optimizer()
    set_random_grads(params_of(source)[:2], 0)
    source.step()
    train(target, range(1))
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert list(target.state) == params_of(target)[:2]
    train(target, range(1, 2))
    assert [int(target.state[param]["step"]) for param in params_of(target)] == [2, 2, 1, 1, 1]


# What is loaded, and what is the live optimizer's


@pytest.mark.parametrize("saved", [None, "cpu", "reference", "a later version's"])
def test_the_backend_of_the_live_optimizer_stays(saved: str | None) -> None:
    source, target = make_optimizer(), make_optimizer(backend="reference")
    target.param_groups[0]["backend"] = "cpu"
    state_dict = copy.deepcopy(source.state_dict())
    for group in state_dict["param_groups"]:
        group["backend"] = saved
    target.load_state_dict(state_dict)
    assert [group["backend"] for group in target.param_groups] == ["cpu", "reference"]


def test_a_state_dict_without_backends_loads() -> None:
    source, target = make_optimizer(), make_optimizer(backend="cpu")
    state_dict = copy.deepcopy(source.state_dict())
    for group in state_dict["param_groups"]:
        del group["backend"]
    target.load_state_dict(state_dict)
    assert [group["backend"] for group in target.param_groups] == ["cpu", "cpu"]


def test_hyperparameters_are_loaded_and_used() -> None:
    source, target = make_optimizer(), make_optimizer()
    changes = {"lr": 0.7, "betas": (0.1, 0.2), "beta3": 0.3, "eps": 0.4, "weight_decay": 0.5}
    source.param_groups[0].update(changes)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert changes.items() <= target.param_groups[0].items()
    assert target.param_groups[1]["lr"] == 0.2
    train(source, range(1))
    train(target, range(1))
    assert_same_training(target, source)


def test_the_state_dict_given_is_not_changed() -> None:
    source, target = make_optimizer(torch.bfloat16), make_optimizer(torch.bfloat16)
    train(source, range(2))
    given = copy.deepcopy(source.state_dict())
    expected = copy.deepcopy(given)
    target.load_state_dict(given)
    assert given["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        assert given["state"][index].keys() == state.keys()
        for name, tensor in state.items():
            assert_same_bits(given["state"][index][name], tensor, name)


# Hooks


def test_hooks_see_the_state_dict_before_and_the_restored_states_after() -> None:
    source, target = make_optimizer(torch.bfloat16), make_optimizer(torch.bfloat16)
    train(source, range(2))
    seen = []

    def pre(optimizer: AdaMod, state_dict: StateDict) -> StateDict:
        assert optimizer is target
        assert not target.state
        changed = copy.deepcopy(state_dict)
        changed["param_groups"][0]["lr"] = 0.25
        changed["state"][0]["exp_avg"] += 1
        return changed

    def post(optimizer: AdaMod) -> None:
        param = params_of(optimizer)[0]
        seen.append((optimizer.state[param]["exp_avg"].clone(), optimizer.param_groups[0]["lr"]))

    target.register_load_state_dict_pre_hook(pre)
    target.register_load_state_dict_post_hook(post)
    target.load_state_dict(source.state_dict())
    expected = source.state[params_of(source)[0]]["exp_avg"] + 1
    ((exp_avg, lr),) = seen
    assert_same_bits(exp_avg, expected)
    assert lr == 0.25


def test_hooks_may_call_the_optimizer() -> None:
    source, target = make_optimizer(), make_optimizer()
    train(source, range(2))
    param = params_of(target)[0]
    calls = []

    def pre(optimizer: AdaMod, _: StateDict) -> None:
        train(optimizer, range(1))
        calls.append("pre")

    def post(optimizer: AdaMod) -> None:
        with optimizer.state_values(param) as values:
            assert values["step"] == 2
            values["exp_avg"].zero_()
        optimizer.replace_param(param, param, lambda _, values: values)
        optimizer.state_dict()
        train(optimizer, range(1))
        calls.append("post")

    target.register_load_state_dict_pre_hook(pre)
    target.register_load_state_dict_post_hook(post)
    target.load_state_dict(source.state_dict())
    assert calls == ["pre", "post"]
    assert target.state[param]["step"] == 3


def test_no_other_call_runs_between_the_check_and_the_restoration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = make_optimizer()
    train(target, range(1))
    given = target.state_dict()
    monkeypatch.setattr(AdaMod, "__setstate__", lambda optimizer, _: optimizer.step())
    with pytest.raises(RuntimeError, match=r"step\(\) was called while load_state_dict\(\)"):
        target.load_state_dict(given)
    monkeypatch.undo()
    target.load_state_dict(given)  # nothing is held after an error
    train(target, range(1))


def test_a_hook_may_repair_what_would_not_load() -> None:
    """The check looks at what the user's hooks returned, not at what was handed in."""
    target = make_optimizer()

    def repair(_: AdaMod, state_dict: StateDict) -> StateDict:
        return make_optimizer().state_dict()

    target.register_load_state_dict_pre_hook(repair)
    target.load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.parametrize("fails", [False, True])
def test_no_hooks_are_left_behind(fails: bool) -> None:
    target = make_optimizer()
    calls = []
    target.register_load_state_dict_pre_hook(lambda o, s: calls.append("pre"))
    target.register_load_state_dict_post_hook(lambda o: calls.append("post"))
    kinds = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")
    before = [dict(getattr(target, kind)) for kind in kinds]
    for _ in range(3):
        if fails:
            with pytest.raises(ValueError, match="param groups"):
                target.load_state_dict({"state": {}, "param_groups": []})
        else:
            target.load_state_dict(target.state_dict())
    assert [dict(getattr(target, kind)) for kind in kinds] == before
    assert calls == (["pre"] if fails else ["pre", "post"]) * 3


def test_hooks_of_state_dict_and_of_step_survive_loading() -> None:
    target, calls = make_optimizer(), []
    target.register_step_pre_hook(lambda *_: calls.append("step"))
    target.register_state_dict_post_hook(lambda o, s: calls.append("saved"))
    target.load_state_dict(make_optimizer().state_dict())
    target.step()
    target.state_dict()
    assert calls == ["step", "saved"]
