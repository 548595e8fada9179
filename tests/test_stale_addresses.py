"""Addresses go stale between steps in many ways; each way must train as the reference does.

Kernels write through addresses that are kept between steps. Every test trains, pulls the memory
away in one way, those of stale_scripts.py among them, and trains on; a kernel that still wrote to
the old place, or read there, would end with other bits than the same steps on the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import (
    OPTIONS,
    STATES,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    train_step,
)
from stale_scripts import SCRIPTS, SHAPES, Script, groups_of, random_like
from torch import Tensor, nn

from adamod_fused import AdaMod


def run_script(backend: str, run: Script) -> AdaMod:
    params = random_params(*SHAPES)
    optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
    train_step(optimizer, 0)
    train_step(optimizer, 1)
    run(optimizer, params)
    for seed in range(40, 43):
        train_step(optimizer, seed)
    return optimizer


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_trains_as_the_reference_does(name: str) -> None:
    expected, actual = (run_script(backend, SCRIPTS[name]) for backend in ("reference", "cpu"))
    assert params_of(expected), "the script left nothing to compare"
    assert_same_training(actual, expected)


def test_memory_that_was_let_go_is_not_written(backend: str) -> None:
    (param,) = random_params((64,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    train_step(optimizer, 0)
    state = optimizer.state[param]
    old = [param.data, *(state[name] for name in STATES), param.grad, state["step"]]
    contents = [tensor.clone() for tensor in old]
    param.data = torch.ones(64)
    state.update({name: torch.zeros(64) for name in STATES}, step=torch.tensor(3.0))
    train_step(optimizer, 1)
    for tensor, content in zip(old, contents, strict=True):
        assert_same_bits(tensor, content)
    assert state["step"] == 4


# Gradients that come and go


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_freed_and_made_again_among_others_of_other_sizes(set_to_none: bool) -> None:
    optimizers = []
    for backend in ("reference", "cpu"):
        params = random_params((64,), (65,), (8, 8), (2, 32), (1000,))
        optimizer = AdaMod(params, **OPTIONS, backend=backend)
        for i in range(8):
            optimizer.zero_grad(set_to_none=set_to_none)
            # Blocks of the gradients' sizes, so that the allocator deals the old addresses anew.
            ballast = [torch.full((n,), torch.nan) for n in (64, 65, 1000, 64)[i % 3 :]]
            order = params if i % 2 else params[::-1]
            loss = sum((p * random_like(p, 10 * i + k)).sum() for k, p in enumerate(order))
            del ballast
            loss.backward()
            optimizer.step()
        optimizers.append(optimizer)
    assert_same_training(*reversed(optimizers))


def alternate(i: int, k: int) -> bool:
    return (i + k) % 2 == 0


PATTERNS: dict[str, Callable[[int, int], bool]] = {
    "every other": alternate,
    "one at a time": lambda i, k: i % 5 == k,
    "all but one": lambda i, k: i % 5 != k,
    "more and more": lambda i, k: k <= i,
    "fewer and fewer": lambda i, k: k + i < 6,
    "first step without any": lambda i, k: i > 0,
    "steps without any in between": lambda i, k: i % 3 == 0,
    "bits of the step": lambda i, k: bool((i >> (k % 3)) & 1),
}


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("layout", ["contiguous", "expanded"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_which_parameters_have_gradients_changes(pattern: str, layout: str) -> None:
    optimizers = []
    for backend in ("reference", "cpu"):
        params = random_params(*SHAPES)
        optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
        for i in range(8):
            for k, param in enumerate(params):
                param.grad = None
                if PATTERNS[pattern](i, k):
                    grad = random_like(param, 100 * i + k)
                    if layout == "expanded" and alternate(i, k + 1) and param.ndim:
                        grad = grad[:1].expand(param.shape)
                    param.grad = grad
            optimizer.step()
        optimizers.append(optimizer)
    assert_same_training(*reversed(optimizers))


# Whole modules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convolution(x).mean((2, 3)))


def module_to(change: Callable[[nn.Module], object]) -> list[AdaMod]:
    optimizers = []
    for backend in ("reference", "cpu"):
        model = Net()
        optimizer = AdaMod(model.parameters(), **OPTIONS, backend=backend)
        train_step(optimizer, 0)
        train_step(optimizer, 1)
        change(model)
        optimizer.step()  # with the gradients that were converted along
        for seed in (2, 3):
            train_step(optimizer, seed)
        optimizers.append(optimizer)
    return optimizers


MODULE_CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "channels_last and back": lambda m: m.to(memory_format=torch.channels_last).to(
        memory_format=torch.contiguous_format
    ),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "half and back": lambda m: m.half().float(),
    "shared memory": lambda m: m.share_memory(),
    "reloaded": lambda m: m.load_state_dict(
        {k: torch.full_like(v, 0.25) for k, v in m.state_dict().items()}, assign=False
    ),
}


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("change", MODULE_CHANGES)
def test_module_is_changed_between_steps(change: str) -> None:
    expected, actual = module_to(MODULE_CHANGES[change])
    assert_same_training(actual, expected)
    for param in params_of(actual):
        assert actual.state[param]["exp_avg"].dtype == torch.float32


@pytest.mark.usefixtures("state_format")
def test_codes_follow_a_module_into_channels_last() -> None:
    """Blocks and random bits follow the order in memory, which is then another."""
    expected, actual = module_to(MODULE_CHANGES["channels_last"])
    assert_same_training(actual, expected)


@pytest.mark.usefixtures("reader")
def test_states_follow_a_module_into_channels_last_by_value() -> None:
    model = Net()
    optimizer = AdaMod(model.parameters(), **OPTIONS, backend="cpu")
    train_step(optimizer, 0)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    model.to(memory_format=torch.channels_last)
    optimizer.zero_grad()
    optimizer.step()  # without gradients, nothing may move
    for index, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            assert_same_bits(tensor, before[index][name], name)
