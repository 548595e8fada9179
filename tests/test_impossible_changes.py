"""Changes between steps that training cannot follow: an error that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from helpers import OPTIONS, STATES, Snapshot, assert_same_bits, random_params, train_step
from stale_scripts import SHAPES, Script, groups_of
from torch import nn

from adamod_fused import AdaMod


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
@pytest.mark.parametrize(
    ("spoil", "error", "message"), IMPOSSIBLE, ids=[case[0].__name__ for case in IMPOSSIBLE]
)
def test_what_cannot_be_followed_is_an_error_and_changes_nothing(
    spoil: Script, error: type[Exception], message: str, backend: str
) -> None:
    params = random_params(*SHAPES)
    optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
    train_step(optimizer, 0)
    spoil(optimizer, params)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message) as raised:
        optimizer.step()
    assert "parameter 1 of group 1" in str(raised.value)
    before.assert_unchanged()


@pytest.mark.usefixtures("reader")
def test_a_parameter_listed_twice_is_an_error(backend: str) -> None:
    params = random_params(*SHAPES)
    optimizer = AdaMod(groups_of(params), **OPTIONS, backend=backend)
    train_step(optimizer, 0)
    listed_twice(optimizer, params)
    before = Snapshot(optimizer)
    with pytest.raises(
        ValueError, match="parameter 1 of group 1 is parameter 2 of group 0 again; list each"
    ):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("weight_format", ["split", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_in_a_format_of_bfloat16_stay_bfloat16(
    dtype: torch.dtype, weight_format: str, backend: str
) -> None:
    (param,) = random_params((6,), dtype=torch.bfloat16)
    optimizer = AdaMod([param], **OPTIONS, backend=backend, weight_format=weight_format)
    train_step(optimizer, 0)
    param.data = param.data.to(dtype)
    param.grad = torch.ones(6, dtype=dtype)
    before = Snapshot(optimizer)
    message = rf"keeps float32 weights in bfloat16 parameters, .* is {dtype}"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("is_view", [False, True])
@pytest.mark.parametrize("name", ["param", "grad", *STATES, "step"])
def test_a_storage_that_shrank_between_steps(name: str, is_view: bool, backend: str) -> None:
    params = random_params((6,), (8,))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    if is_view:  # the storage is long enough, but not from the first element on
        buffer = torch.ones(12)
        params[1].data = buffer[4:]
    train_step(optimizer, 0)
    entries = optimizer.state[params[1]]
    tensor = {"param": params[1].data, "grad": params[1].grad, **entries}[name]
    if is_view and name in STATES:
        entries[name] = tensor = torch.zeros(12)[4:]
    elif is_view and name == "grad":
        params[1].grad = tensor = torch.ones(12)[4:]
    optimizer.step()
    size = 3 if name == "step" else 40 if is_view and tensor.storage_offset() else 16
    tensor.untyped_storage().resize_(size)
    weight = params[0].detach().clone()
    who = {"param": "", "grad": "the gradient of "}.get(name, f"{name} of ")
    message = rf"^{who}parameter 1 of group 0 has \d elements and a storage of {size} bytes"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            optimizer.step()
    assert_same_bits(params[0], weight)
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_count_whose_memory_was_freed(steps: int, backend: str) -> None:
    params = random_params((6,), (7,))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    train_step(optimizer, 0)
    if steps == 0:  # there is no plan yet
        optimizer.load_state_dict(optimizer.state_dict())
    count = optimizer.state[params[1]]["step"]
    count.untyped_storage().resize_(0)
    weights = [param.detach().clone() for param in params]
    with pytest.raises(
        ValueError, match="step of parameter 1 of group 0 has 1 elements and no mem"
    ):
        optimizer.step()
    for param, weight in zip(params, weights, strict=True):
        assert_same_bits(param, weight)
    assert optimizer.state[params[0]]["step"] == 1
