"""The generic checks of torch's test/test_optim.py on AdaMod's state dicts.

test_torch_optim.py says which checks are run and which do not apply.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, assert_same_training, params_of
from torch import Tensor, nn
from torch.nn import Parameter
from torch_database import (
    INFO,
    Make,
    kwargs_of,
    on_each_device,
    on_each_input,
    on_each_input_and_flag,
)

from adamod_fused import AdaMod

pytestmark = on_each_device
StateDict = dict[str, Any]


@pytest.fixture
def make(index: int, flags: dict[str, bool], device: str) -> Make:
    """Makes an optimizer with the hyperparameters of the input under test."""
    return lambda params: INFO.optim_cls(params, **kwargs_of(index, flags, device))


class Network:
    """A layer and a norm, as in torch's checks; no convolution, for the same bits on a GPU."""

    def __init__(self, device: str, seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).to(device)
        self.input = torch.rand(8, 4).to(device)

    def params(self, named: bool) -> Any:
        return self.layers.named_parameters() if named else self.layers.parameters()

    def train(self, optimizer: AdaMod, steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            self.layers(self.input + step).pow(2).sum().backward()
            optimizer.step()


def without_names(state_dict: StateDict) -> list[StateDict]:
    return [
        {name: value for name, value in group.items() if name != "param_names"}
        for group in state_dict["param_groups"]
    ]


def assert_equal_state_dicts(actual: StateDict, expected: StateDict) -> None:
    assert without_names(actual) == without_names(expected)
    assert actual["state"].keys() == expected["state"].keys()
    for index, states in expected["state"].items():
        assert actual["state"][index].keys() == states.keys()
        for name, tensor in states.items():
            assert_same_bits(actual["state"][index][name], tensor, f"{name} of {index}")


@on_each_input
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("target_named", [False, True])
def test_two_that_share_a_state_dict_stay_equal(
    make: Make, device: str, named: bool, target_named: bool
) -> None:
    network = Network(device)
    optimizer = make(network.params(named))
    network.train(optimizer, 3)
    twin = copy.deepcopy(network)
    loaded = make(twin.params(target_named))
    state_dict = optimizer.state_dict()
    given = copy.deepcopy(state_dict)
    loaded.load_state_dict(given)
    assert_equal_state_dicts(given, state_dict)  # loading leaves it alone
    network.train(optimizer, 3)
    twin.train(loaded, 3)
    assert_same_training(loaded, optimizer)
    assert_equal_state_dicts(loaded.state_dict(), optimizer.state_dict())
    loaded.param_groups.extend(loaded.param_groups)  # repeated, the parameters keep their numbers
    repeated = loaded.state_dict()
    assert without_names(repeated)[-1] == without_names(optimizer.state_dict())[-1]
    if named or target_named:
        expected = ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert repeated["param_groups"][0]["param_names"] == expected


@on_each_input_and_flag
def test_a_state_dict_older_than_the_flags(make: Make, device: str) -> None:
    network = Network(device)
    optimizer = make(network.params(named=False))
    network.train(optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    older = copy.deepcopy(before)
    for group in older["param_groups"]:
        for flag in INFO.not_og_supported_flags:
            del group[flag]
    optimizer.load_state_dict(older)
    assert_equal_state_dicts(optimizer.state_dict(), before)
    network.train(optimizer, 1)
    assert int(optimizer.state[params_of(optimizer)[0]]["step"]) == 4


@on_each_input_and_flag
@pytest.mark.parametrize("weights_only", [False, True])
def test_saved_and_loaded(make: Make, device: str, weights_only: bool) -> None:
    network = Network(device)
    optimizer = make(network.params(named=True))
    network.train(optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)
    assert_equal_state_dicts(loaded, optimizer.state_dict())


@on_each_input
def test_steps_that_are_numbers(make: Make, device: str) -> None:
    network = Network(device)
    optimizer = make(network.params(named=False))
    network.train(optimizer, 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for states in state_dict["state"].values():
        states["step"] = states["step"].item()
    optimizer.load_state_dict(state_dict)
    network.train(optimizer, 1)
    assert {int(states["step"]) for states in optimizer.state.values()} == {4}


@on_each_input_and_flag
@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_steps_as_the_original(make: Make, device: str, how: Any) -> None:
    param = Parameter(torch.linspace(-1, 1, 6, device=device).reshape(2, 3))
    optimizer = make([param])
    for step in range(4):
        if step == 2:
            twin = how(optimizer)
        param.grad = torch.full_like(param, 0.5 - step)
        optimizer.step()
    public = [{name for name in o.__dict__ if name[0] != "_"} for o in (twin, optimizer)]
    assert public[0] == public[1]
    for step in range(2, 4):
        params_of(twin)[0].grad = torch.full_like(param, 0.5 - step)
        twin.step()
    assert_same_training(twin, optimizer)


@on_each_input_and_flag
def test_a_checkpoint_from_the_cpu(index: int, flags: dict[str, bool], device: str) -> None:
    """On a GPU the states move there, and the steps go on alike."""
    network = Network("cpu")
    optimizer = AdaMod(network.params(named=False), **kwargs_of(index, flags, "cpu"))
    network.train(optimizer, 3)
    params = [p.detach().clone().to(device).requires_grad_() for p in params_of(optimizer)]
    target = AdaMod(params, **kwargs_of(index, flags, device))
    given = copy.deepcopy(optimizer.state_dict())
    target.load_state_dict(given)
    assert_equal_state_dicts(given, optimizer.state_dict())
    for _ in range(5):
        for param, source in zip(params, params_of(optimizer), strict=True):
            source.grad = torch.rand_like(source)
            param.grad = source.grad.to(device)
        optimizer.step()
        target.step()
    assert_same_training(target, optimizer)


# Hooks


def add_entry(optimizer: AdaMod) -> None:
    optimizer.state["test"] = 1


def move_entry(_: AdaMod, state_dict: StateDict) -> StateDict:
    return {**state_dict, "ran before": state_dict["state"].pop("test", None) is not None}


@on_each_input
@pytest.mark.parametrize("hooks", ["before", "after", "both"])
def test_hooks_of_state_dict(make: Make, device: str, hooks: str) -> None:
    optimizer = make([Parameter(torch.rand(2, 3, device=device))])
    if hooks != "after":
        optimizer.register_state_dict_pre_hook(add_entry)
    if hooks != "before":
        optimizer.register_state_dict_post_hook(move_entry)
    state_dict = optimizer.state_dict()
    assert state_dict["state"] == ({"test": 1} if hooks == "before" else {})
    assert state_dict.get("ran before") == {"before": None, "after": False, "both": True}[hooks]


def set_lr(lr: float) -> Any:
    def hook(_: AdaMod, state_dict: StateDict) -> StateDict:
        changed = copy.deepcopy(state_dict)
        changed["param_groups"][0]["lr"] = lr
        return changed

    return hook


@on_each_input
@pytest.mark.parametrize("prepend", [False, True])
def test_hooks_of_load_state_dict(make: Make, device: str, prepend: bool) -> None:
    param: Tensor = Parameter(torch.rand(2, 3, device=device))
    optimizer = make([param])
    optimizer.register_load_state_dict_pre_hook(set_lr(0.002))
    optimizer.register_load_state_dict_pre_hook(set_lr(0.003), prepend=prepend)

    def note(loaded: AdaMod) -> None:
        loaded.state["lr seen"] = loaded.param_groups[0]["lr"]

    optimizer.register_load_state_dict_post_hook(note)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr seen"] == (0.002 if prepend else 0.003)
    param.grad = torch.ones_like(param)
    optimizer.step()  # an entry that is no parameter's does not disturb it
    assert optimizer.state["lr seen"] == optimizer.param_groups[0]["lr"]
