"""Checkpoints: exact bits in the dtypes of the states, or a clear error and nothing changed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    Snapshot,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
)
from torch import nn

from adamod_fused import AdaMod

SHAPES = ((3, 4), (), (7,), (0,), (2, 3, 5))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
StateDict = dict[str, Any]


def make(dtype: torch.dtype = torch.float32, seed: int = 0, backend: str | None = None) -> AdaMod:
    params = random_params(*SHAPES, dtype=dtype, seed=seed)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.2, "maximize": False}]
    return AdaMod(groups, **OPTIONS, backend=backend)


def train(optimizer: AdaMod, steps: range) -> None:
    for step in steps:
        set_random_grads(params_of(optimizer), step)
        optimizer.step()


def by_file(state_dict: StateDict) -> StateDict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS: dict[str, Callable[[StateDict], StateDict]] = {"memory": copy.deepcopy, "file": by_file}


@pytest.mark.parametrize("steps_before_loading", [0, 1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_resumed_training_equals_uninterrupted_training(
    backend: str, dtype: torch.dtype, way: str, steps_before_loading: int
) -> None:
    whole, first = make(dtype, backend=backend), make(dtype, backend=backend)
    train(whole, range(5))
    train(first, range(2))
    resumed = make(dtype, seed=9, backend=backend)
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
    source, target = make(dtype), make(dtype)
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
    source, target = make(), make()
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
    source, target = make(torch.float64), make(torch.float32)
    train(source, range(2))
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    for a, b in zip(params_of(target), params_of(source), strict=True):
        for name in STATES:
            assert_same_bits(target.state[a][name], source.state[b][name].float(), name)


@pytest.mark.parametrize(
    "step", [2, 2.0, torch.tensor(2), torch.tensor([2.0]), torch.tensor(2.0).double()], ids=repr
)
def test_steps_of_other_types_are_accepted(step: object) -> None:
    source, target = make(), make()
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


def test_parameters_without_state_stay_without_it() -> None:
    source, target = make(), make()
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
    source, target = make(), make(backend="reference")
    target.param_groups[0]["backend"] = "cpu"
    state_dict = copy.deepcopy(source.state_dict())
    for group in state_dict["param_groups"]:
        group["backend"] = saved
    target.load_state_dict(state_dict)
    assert [group["backend"] for group in target.param_groups] == ["cpu", "reference"]


def test_a_state_dict_without_backends_loads() -> None:
    source, target = make(), make(backend="cpu")
    state_dict = copy.deepcopy(source.state_dict())
    for group in state_dict["param_groups"]:
        del group["backend"]
    target.load_state_dict(state_dict)
    assert [group["backend"] for group in target.param_groups] == ["cpu", "cpu"]


def test_hyperparameters_are_loaded_and_used() -> None:
    source, target = make(), make()
    changes = {"lr": 0.7, "betas": (0.1, 0.2), "beta3": 0.3, "eps": 0.4, "weight_decay": 0.5}
    source.param_groups[0].update(changes)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert changes.items() <= target.param_groups[0].items()
    assert target.param_groups[1]["lr"] == 0.2
    train(source, range(1))
    train(target, range(1))
    assert_same_training(target, source)


def test_the_state_dict_given_is_not_changed() -> None:
    source, target = make(torch.bfloat16), make(torch.bfloat16)
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
    source, target = make(torch.bfloat16), make(torch.bfloat16)
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


def test_a_hook_may_repair_what_would_not_load() -> None:
    """The check looks at what the user's hooks returned, not at what was handed in."""
    target = make()

    def repair(_: AdaMod, state_dict: StateDict) -> StateDict:
        return make().state_dict()

    target.register_load_state_dict_pre_hook(repair)
    target.load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.parametrize("fails", [False, True])
def test_no_hooks_are_left_behind(fails: bool) -> None:
    target = make()
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
    target, calls = make(), []
    target.register_step_pre_hook(lambda *_: calls.append("step"))
    target.register_state_dict_post_hook(lambda o, s: calls.append("saved"))
    target.load_state_dict(make().state_dict())
    target.step()
    target.state_dict()
    assert calls == ["step", "saved"]


# What does not load


def of_adam(_: StateDict) -> StateDict:
    params = random_params(*SHAPES)
    adam = torch.optim.Adam([{"params": params[:2]}, {"params": params[2:]}], lr=0.5)
    set_random_grads(params, 0)
    adam.step()
    return adam.state_dict()


def change(path: tuple, value: object) -> Callable[[StateDict], StateDict]:
    """A change of the entry at ``path``; ``KeyError`` stands for its removal."""

    def apply(state_dict: StateDict) -> StateDict:
        *outer, last = path
        at: Any = state_dict
        for key in outer:
            at = at[key]
        if value is KeyError:
            del at[last]
        else:
            at[last] = value
        return state_dict

    return apply


def fewer_groups(state_dict: StateDict) -> StateDict:
    return {**state_dict, "param_groups": state_dict["param_groups"][:1]}


def group(name: str, value: object) -> Callable[[StateDict], StateDict]:
    return change(("param_groups", 1, name), value)


LAST = ("state", 4)  # the last of all states: everything before it must not have been loaded
NOT_LOADABLE = [
    ("torch.optim.Adam's", of_adam, ValueError, r"group 0 .*lacks beta3, variant.*AdaMod"),
    ("no state", change(("state",), KeyError), ValueError, "lacks 'state'"),
    ("no groups", change(("param_groups",), KeyError), ValueError, "lacks 'param_groups'"),
    ("too few groups", fewer_groups, ValueError, r"\[2\] parameters, the optimizer of \[2, 3\]"),
    ("too few params", group("params", [2, 3]), ValueError, r"\[2, 2\] .*\[2, 3\]"),
    ("too many params", group("params", [2, 3, 4, 5]), ValueError, r"\[2, 4\] .*\[2, 3\]"),
    ("no lr", group("lr", KeyError), ValueError, "group 1 of the state dict lacks lr"),
    ("no variant", group("variant", KeyError), ValueError, "group 1 .* lacks variant"),
    ("lr", group("lr", -1.0), ValueError, r"lr must be .*>= 0, got -1\.0"),
    ("lr nan", group("lr", torch.nan), ValueError, "lr must be .*got nan"),
    ("betas", group("betas", (0.9, 1.0)), ValueError, r"beta2 must lie in \[0, 1\), got 1\.0"),
    ("betas of three", group("betas", (0.9, 0.9, 0.9)), ValueError, "betas must be two numbers"),
    ("beta3", group("beta3", 1.5), ValueError, r"beta3 must lie in \[0, 1\), got 1\.5"),
    ("eps", group("eps", "small"), TypeError, "eps must be a number, got 'small'"),
    ("variant", group("variant", "v3"), ValueError, "variant must be one of .*'released'.*'v3'"),
    ("maximize", group("maximize", 1), TypeError, "maximize must be True or False, got 1"),
    *(
        (f"no {name}", change((*LAST, name), KeyError), ValueError, f"4|2 of group 1 lacks {name}")
        for name in ("step", *STATES)
    ),
    *(
        (
            f"{name} of another shape",
            change((*LAST, name), torch.zeros(5, 3, 2)),
            ValueError,
            rf"{name} of parameter 2 of group 1 has shape \(5, 3, 2\), the parameter \(2, 3, 5\)",
        )
        for name in STATES
    ),
    ("number", change((*LAST, "exp_avg"), 0.0), TypeError, "exp_avg of .* must be a tensor, got 0"),
    (
        "sparse",
        change((*LAST, "exp_avg"), torch.zeros(2, 3, 5).to_sparse()),
        TypeError,
        "exp_avg of parameter 2 of group 1 .*sparse",
    ),
    (
        "complex",
        change((*LAST, "exp_avg"), torch.zeros(2, 3, 5).cfloat()),
        TypeError,
        "exp_avg of parameter 2 of group 1 .*complex64",
    ),
    (
        "no data",
        change((*LAST, "exp_avg"), torch.zeros(2, 3, 5, device="meta")),
        RuntimeError,
        "meta",
    ),
    ("step below 0", change((*LAST, "step"), -1), ValueError, r"step of parameter 2 .* got -1"),
    ("step nan", change((*LAST, "step"), torch.tensor(torch.nan)), ValueError, r"step .*\(nan\)"),
    ("step too large", change((*LAST, "step"), 1e30), ValueError, r"step of .* got 1e\+30"),
    ("steps", change((*LAST, "step"), torch.ones(2)), TypeError, "step of .* must be a number"),
]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [case[1:] for case in NOT_LOADABLE],
    ids=[case[0] for case in NOT_LOADABLE],
)
def test_what_does_not_load_changes_nothing(
    spoil: Callable[[StateDict], StateDict], error: type[Exception], message: str, steps: int
) -> None:
    source, target, twin = make(), make(seed=1), make(seed=1)
    train(source, range(3))
    train(target, range(steps))
    before = Snapshot(target)
    spoiled = spoil(copy.deepcopy(source.state_dict()))
    with pytest.raises(error, match=message):
        target.load_state_dict(spoiled)
    before.assert_unchanged()
    train(target, range(steps, steps + 2))
    train(twin, range(steps + 2))
    assert_same_training(target, twin)


def test_state_for_a_parameter_that_cannot_have_any() -> None:
    (trained,) = random_params((3,))
    integers = nn.Parameter(torch.arange(3), requires_grad=False)
    optimizer = AdaMod([trained, integers], **OPTIONS)
    set_random_grads([trained], 0)
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][1] = copy.deepcopy(state_dict["state"][0])
    before = Snapshot(optimizer)
    with pytest.raises(TypeError, match=r"parameter 1 of group 0 has dtype torch\.int64"):
        optimizer.load_state_dict(state_dict)
    before.assert_unchanged()


def test_errors_name_the_parameter() -> None:
    model = nn.Linear(3, 2)
    optimizer = AdaMod(model.named_parameters(), **OPTIONS)
    set_random_grads(model.parameters(), 0)
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][1]["exp_avg_sq"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 \('bias'\)"):
        optimizer.load_state_dict(state_dict)


def test_optimizers_that_load_one_state_dict_count_their_own_steps() -> None:
    source = AdaMod(random_params((3,)), **OPTIONS)
    set_random_grads(params_of(source), 0)
    source.step()
    saved = source.state_dict()
    first, second = (AdaMod(random_params((3,)), **OPTIONS) for _ in range(2))
    for optimizer in (first, second):
        optimizer.load_state_dict(saved)
        set_random_grads(params_of(optimizer), 1)
        optimizer.step()
    steps = [next(iter(o.state.values()))["step"].item() for o in (source, first, second)]
    assert steps == [1.0, 2.0, 2.0]
