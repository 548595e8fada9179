"""Addresses go stale between steps in many ways; each way must train as the reference does.

Kernels write through addresses that are kept between steps. Every script below trains, pulls the
memory away in one way, and trains on; a kernel that still wrote to the old place, or read there,
would end with other bits than the same script on the reference.
"""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Iterable

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
from torch import Tensor, nn

import adamod_fused.optimizer
from adamod_fused import AdaMod
from adamod_fused.backends import extension
from adamod_fused.plan import Plan

SHAPES = ((3, 4), (6,), (), (6,), (2, 3, 4, 5))
STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr")


@pytest.fixture(params=["fast", "slow"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors read through torch's C table, or through Python methods as before torch 2.10."""
    fast = request.param == "fast"
    if fast and not extension.core.Table([], 0, True).fast:
        pytest.skip("this torch has no DLPack exchange table, which came with torch 2.10")
    assert not extension.core.Table([], 0, False).fast
    monkeypatch.setattr(adamod_fused.optimizer, "Plan", functools.partial(Plan, fast=fast))


def random_like(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def step(optimizer: AdaMod, seed: int) -> None:
    set_random_grads(params_of(optimizer), seed)
    optimizer.step()


def groups_of(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.2, "betas": (0.5, 0.7)}]


# Scripts: each gets an optimizer that has stepped twice and its parameters

Script = Callable[[AdaMod, list[nn.Parameter]], None]
SCRIPTS: dict[str, Script] = {}


def script(function: Script) -> Script:
    SCRIPTS[function.__name__.replace("_", " ")] = function
    return function


@script
def swap_data(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    for i, param in enumerate(params):
        param.data = random_like(param, i)


@script
def swap_data_between_parameters(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[1].data, params[3].data = params[3].data, params[1].data


@script
def swap_data_for_other_strides(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.T.contiguous().T
    params[1].data = torch.stack([params[1].data, params[1].data], -1)[:, 0]
    step(optimizer, 20)
    params[0].data = torch.stack([params[0].data, params[0].data], -1)[..., 1]
    step(optimizer, 21)
    params[0].data = params[0].data.contiguous()
    params[1].data = params[1].data.contiguous()


@script
def swap_data_for_another_shape(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """With the state removed, as one who grows an embedding does."""
    for param in (params[0], params[3]):
        del optimizer.state[param]
        param.data = torch.linspace(-1, 1, 200).view(20, 10)
        param.grad = None


@script
def swap_data_for_another_dtype(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """States of float32 serve halves too."""
    params[0].data = params[0].data.bfloat16()
    params[4].data = params[4].data.half()
    step(optimizer, 20)
    params[0].data = params[0].data.float()


@script
def set_the_storage(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    with torch.no_grad():
        params[4].set_(random_like(params[4], 5))
        optimizer.state[params[0]]["exp_avg"].set_(random_like(params[0], 6))


@script
def resize_in_place(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The same tensor objects, with memory elsewhere."""
    param, state = params[1], optimizer.state[params[1]]
    for tensor in (param.data, state["exp_avg"], state["exp_avg_sq"], state["exp_avg_lr"]):
        tensor.resize_(100_000).fill_(0.25)
        tensor.resize_(6)
    step(optimizer, 20)
    with torch.no_grad():
        param.data = torch.full((50,), 0.5)
        for name in STATES:
            state[name].resize_(50).fill_(0.125)


@script
def replace_state_tensors(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    for i, param in enumerate(params):
        for name in STATES:
            optimizer.state[param][name] = random_like(param, i).abs()


@script
def replace_state_tensors_by_some_in_another_layout(
    optimizer: AdaMod, params: list[nn.Parameter]
) -> None:
    state = optimizer.state[params[0]]
    state["exp_avg"] = state["exp_avg"].T.contiguous().T
    state["exp_avg_lr"] = torch.stack([state["exp_avg_lr"]] * 2, -1)[..., 0]
    step(optimizer, 20)
    last = optimizer.state[params[4]]
    last["exp_avg_sq"] = last["exp_avg_sq"].contiguous(memory_format=torch.channels_last)


@script
def replace_state_data(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    for param in params:
        for name in STATES:
            tensor = optimizer.state[param][name]
            tensor.data = tensor.data.clone() + 0.5


@script
def swap_states_between_parameters(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    state = optimizer.state
    state[params[1]], state[params[3]] = state[params[3]], state[params[1]]


@script
def replace_a_state_entry(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]] = copy.deepcopy(optimizer.state[params[3]])


@script
def reorder_the_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[0]] = optimizer.state.pop(params[0])


@script
def exchange_the_places_of_two_entries(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """Both of one shape: only the keys tell which entry is whose."""
    order = [params[i] for i in (0, 3, 2, 1, 4)]
    entries = dict(optimizer.state)
    optimizer.state.clear()
    optimizer.state.update({param: entries[param] for param in order})


@script
def replace_the_whole_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state = {param: copy.deepcopy(optimizer.state[param]) for param in params}


@script
def clear_the_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state.clear()


@script
def clear_some_of_the_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[1]]
    optimizer.state[params[3]] = {}


@script
def empty_an_entry_in_place(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]].clear()


@script
def replace_the_step(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[0]]["step"] = torch.tensor(7.0)
    optimizer.state[params[1]]["step"].fill_(0.0)
    optimizer.state[params[3]]["step"] = torch.tensor([1.0, 30.0])[1]


@script
def reload(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    step(optimizer, 20)
    step(optimizer, 21)
    optimizer.load_state_dict(saved)
    del saved
    gc.collect()


@script
def grow_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"] += random_params((5,), (7, 2), seed=4)


@script
def add_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.add_param_group({"params": random_params((5,), (7, 2), seed=4), "lr": 0.4})


@script
def remove_a_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """Its state stays behind, and its memory goes."""
    removed = optimizer.param_groups[0]["params"].pop(0)
    removed.data = torch.empty(0)
    gc.collect()


@script
def remove_a_parameter_and_its_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.state[optimizer.param_groups[1]["params"].pop()]
    params.pop()
    gc.collect()


@script
def remove_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.param_groups[0]


@script
def empty_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"].clear()


@script
def swap_the_order_of_parameters(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    listed = optimizer.param_groups[1]["params"]
    listed[0], listed[1] = listed[1], listed[0]


@script
def swap_parameters_of_two_groups(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The same shape in both, so that nothing but the hyperparameters tells them apart."""
    first, second = (group["params"] for group in optimizer.param_groups)
    first[1], second[1] = second[1], first[1]


@script
def move_the_border_between_groups(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The parameters stay in order: only where one group ends has changed."""
    first, second = (group["params"] for group in optimizer.param_groups)
    first.append(second.pop(0))


@script
def swap_groups(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups.reverse()


@script
def replace_a_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The new one has the shape and, as likely as not, the address of the old one."""
    (new,) = random_params((6,), seed=8)
    optimizer.state[new] = optimizer.state.pop(params[1])
    optimizer.param_groups[0]["params"][1] = new
    del params[1]
    gc.collect()


@script
def swap_tensors(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """What ``Module.to`` may do: the objects stay, all else is exchanged."""
    torch.utils.swap_tensors(params[1], random_params((6,), seed=8)[0])
    state = optimizer.state[params[3]]
    torch.utils.swap_tensors(state["exp_avg"], torch.full((6,), 0.5))


@script
def make_a_parameter_require_no_gradient(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].requires_grad_(False)
    params[0].grad = None
    optimizer.step()
    params[0].requires_grad_(True)


def train(backend: str, run: Script) -> AdaMod:
    params = random_params(*SHAPES)
    optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
    step(optimizer, 0)
    step(optimizer, 1)
    run(optimizer, params)
    for seed in range(40, 43):
        step(optimizer, seed)
    return optimizer


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_trains_as_the_reference_does(name: str) -> None:
    expected, actual = (train(backend, SCRIPTS[name]) for backend in ("reference", "cpu"))
    assert params_of(expected), "the script left nothing to compare"
    assert_same_training(actual, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_that_was_let_go_is_not_written(backend: str) -> None:
    (param,) = random_params((64,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    step(optimizer, 0)
    state = optimizer.state[param]
    old = [param.data, *(state[name] for name in STATES), param.grad, state["step"]]
    contents = [tensor.clone() for tensor in old]
    param.data = torch.ones(64)
    state.update({name: torch.zeros(64) for name in STATES}, step=torch.tensor(3.0))
    step(optimizer, 1)
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
        step(optimizer, 0)
        step(optimizer, 1)
        change(model)
        optimizer.step()  # with the gradients that were converted along
        for seed in (2, 3):
            step(optimizer, seed)
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


@pytest.mark.usefixtures("reader")
def test_states_follow_a_module_into_channels_last_by_value() -> None:
    model = Net()
    optimizer = AdaMod(model.parameters(), **OPTIONS, backend="cpu")
    step(optimizer, 0)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    model.to(memory_format=torch.channels_last)
    optimizer.zero_grad()
    optimizer.step()  # without gradients, nothing may move
    for index, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            assert_same_bits(tensor, before[index][name], name)


# Changes that cannot be followed


def to_double(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[3].data = params[3].data.double()
    params[3].grad = torch.ones(6, dtype=torch.float64)


def other_shape(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[3].data = torch.ones(7)
    params[3].grad = torch.ones(7)


def stale_gradient(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[3].data = torch.ones(7)


def half_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["exp_avg"] = torch.ones(6).half()


def state_of_another_shape(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["exp_avg_lr"] = torch.ones(5)


def no_longer_a_tensor(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["exp_avg_sq"] = 0.5


def integer_step(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["step"] = 5


def tensor_of_an_integer(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["step"] = torch.tensor(5)


def step_of_one_dimension(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["step"] = torch.ones(1)


def step_beyond_float32(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[3]]["step"].fill_(2.0**25)


def entry_gone(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[3]]["exp_avg_lr"]


def listed_twice(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"].append(params[3])


IMPOSSIBLE: Iterable[tuple[Script, type[Exception], str]] = [
    (to_double, TypeError, r"exp_avg of .*float32 .* of dtype torch\.float64 has"),
    (other_shape, ValueError, r"exp_avg of .* has shape \(6,\), the parameter \(7,\)"),
    (stale_gradient, ValueError, r"gradient of .* has shape \(6,\), the parameter \(7,\)"),
    (half_state, TypeError, r"exp_avg of .* has dtype torch\.float16"),
    (state_of_another_shape, ValueError, r"exp_avg_lr of .* has shape \(5,\)"),
    (no_longer_a_tensor, TypeError, r"exp_avg_sq of .* must be a tensor, got 0\.5"),
    (integer_step, TypeError, "step of .* must be a 0-dim float32 tensor .*, got 5"),
    (tensor_of_an_integer, TypeError, "step of .* must be a 0-dim float32 tensor"),
    (step_of_one_dimension, TypeError, "step of .* must be a 0-dim float32 tensor"),
    (step_beyond_float32, ValueError, r"step of .* must lie in \[0, 1\.67"),
    (entry_gone, ValueError, "the state of .* lacks exp_avg_lr"),
]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("spoil", "error", "message"), IMPOSSIBLE, ids=[case[0].__name__ for case in IMPOSSIBLE]
)
def test_what_cannot_be_followed_is_an_error_and_changes_nothing(
    spoil: Script, error: type[Exception], message: str, backend: str
) -> None:
    params = random_params(*SHAPES)
    optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
    step(optimizer, 0)
    spoil(optimizer, params)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message) as raised:
        optimizer.step()
    assert "parameter 1 of group 1" in str(raised.value)
    before.assert_unchanged()


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_parameter_listed_twice_is_an_error(backend: str) -> None:
    params = random_params(*SHAPES)
    optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
    step(optimizer, 0)
    listed_twice(optimizer, params)
    before = Snapshot(optimizer)
    with pytest.raises(
        ValueError, match="parameter 1 of group 1 is parameter 2 of group 0 again; list each"
    ):
        optimizer.step()
    before.assert_unchanged()
