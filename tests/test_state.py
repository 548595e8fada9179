"""The state between steps: as documented, with users' entries in it, and copied."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train,
)

from adamod_fused import AdaMod

STATE_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=str)
def test_state_is_as_documented(dtype: torch.dtype, default: torch.dtype, backend: str) -> None:
    torch.set_default_dtype(default)
    try:
        optimizer = AdaMod(random_params(*SHAPES, dtype=dtype), **OPTIONS, backend=backend)
        train(optimizer, range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    for param in params_of(optimizer):
        state = optimizer.state[param]
        assert list(state) == ["step", "exp_avg", "exp_avg_sq", "exp_avg_lr"]
        step = state.pop("step")
        assert (step.dtype, step.shape, step.device.type) == (torch.float32, (), "cpu")
        assert step == 2
        for name, tensor in state.items():
            assert (tensor.dtype, tensor.shape) == (STATE_DTYPES[dtype], param.shape), name
            assert not tensor.requires_grad


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_default_device_does_not_move_the_state(default: str, backend: str) -> None:
    optimizer = AdaMod(random_params((3,)), **OPTIONS, backend=backend)
    with torch.device(default):
        train(optimizer, range(2))
    (state,) = optimizer.state.values()
    assert all(tensor.device.type == "cpu" for tensor in state.values())


def test_looking_at_the_state_before_the_first_step(backend: str) -> None:
    """``optimizer.state`` is a defaultdict: a look leaves an empty entry behind."""
    looked_at = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    plain = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    for param in params_of(looked_at):
        assert looked_at.state[param] == {}
    looked_at.step()
    looked_at.load_state_dict(looked_at.state_dict())
    train(looked_at, range(2))
    train(plain, range(2))
    assert_same_training(looked_at, plain)


@pytest.mark.parametrize("entry", [3, {"count": 3}], ids=["number", "dict"])
def test_users_may_keep_entries_of_their_own_in_the_state(entry: object, backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    plain = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    optimizer.state["mine"] = entry
    train(optimizer, range(2))
    optimizer.state["later"] = entry
    train(optimizer, range(2, 4))
    train(plain, range(4))
    assert_same_training(optimizer, plain)
    assert optimizer.state["mine"] is entry


def test_states_of_a_parameter_may_have_entries_of_the_users(backend: str) -> None:
    optimizer = AdaMod(random_params((3,)), **OPTIONS, backend=backend)
    train(optimizer, range(1))
    (state,) = optimizer.state.values()
    state["mine"] = 3
    train(optimizer, range(1, 3))
    assert state["mine"] == 3
    assert state["step"] == 3


# Copies

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}


@pytest.mark.parametrize("copied_after", [0, 2])
@pytest.mark.parametrize("how", COPIES)
def test_copies_continue_identically_and_independently(
    how: str, copied_after: int, backend: str
) -> None:
    original, expected = make_optimizer(backend=backend), make_optimizer(backend=backend)
    train(original, range(copied_after))
    twin = COPIES[how](original)
    train(expected, range(copied_after + 3))
    before = Snapshot(original)
    train(twin, range(copied_after, copied_after + 3))
    for param in params_of(original):
        param.grad = None if copied_after == 0 else param.grad
    if copied_after:
        set_random_grads(params_of(original), copied_after - 1)
    before.assert_unchanged()
    train(original, range(copied_after, copied_after + 3))
    assert_same_training(original, expected)
    assert_same_training(twin, expected)
    assert twin.param_groups[1]["lr"] == 0.2
    assert twin.state_dict().keys() == original.state_dict().keys()
    for group, other in zip(twin.param_groups, make_optimizer().param_groups, strict=True):
        assert group.keys() == other.keys()
