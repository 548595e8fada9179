"""Step counts and hyperparameters that live on the device, on the CUDA engine emulated.

Its "device" memory is the CPU's, so a test can read and change what only kernels read otherwise.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    assert_same_bits,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train,
    train_step,
)

from adamod_fused import AdaMod
from adamod_fused.hyperparameters import DeviceNumber
from adamod_fused.optimizer import KEYWORDS
from adamod_fused.plan import Plan
from adamod_fused.reference import AdaMod as Rule

pytestmark = pytest.mark.usefixtures("state_format", "emulated_as_cuda")


def counts_on_device(optimizer: AdaMod) -> set[bool]:
    """Of each batch of the plan."""
    return {batch.counts_on_device for batch in optimizer._plan._batches}


def make_capturable(dtype: torch.dtype = torch.float32) -> AdaMod:
    optimizer = make_optimizer(dtype, backend="cuda")
    for group in optimizer.param_groups:
        group["capturable"] = True
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_bits_as_counting_on_the_host(dtype: torch.dtype) -> None:
    there, here = make_capturable(dtype), make_optimizer(dtype, backend="reference")
    for step in range(5):
        for optimizer in (there, here):
            set_random_grads(params_of(optimizer), step)
            if step % 2:  # so that counts differ
                params_of(optimizer)[0].grad = None
            optimizer.step()
    assert counts_on_device(there) == {True}
    assert_same_training(there, here)


def test_hyperparameters_that_change_between_steps() -> None:
    there, here = make_capturable(), make_optimizer(backend="reference")
    for step in range(4):
        for optimizer in (there, here):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.param_groups[1]["betas"] = (0.5, 0.9 + 0.01 * step)
            train_step(optimizer, step)
    assert_same_training(there, here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_hyperparameters_read_from_the_device(dtype: torch.dtype) -> None:
    params, twins = random_params(*SHAPES), random_params(*SHAPES)
    expected = AdaMod(twins, **OPTIONS, backend="reference")
    numbers: dict[str, Any] = {"lr": 0.25, "weight_decay": 0.5, "beta3": 0.75, "eps": 0.125}
    tensors = {name: torch.tensor(value, dtype=dtype) for name, value in numbers.items()}
    betas = torch.tensor(0.5, dtype=dtype), torch.tensor(0.875, dtype=dtype)
    given = {name: value for name, value in OPTIONS.items() if name not in KEYWORDS}
    given |= {name: DeviceNumber(tensor) for name, tensor in tensors.items()}
    given["betas"] = tuple(map(DeviceNumber, betas))
    groups = [AdaMod(params, **OPTIONS, capturable=True, backend="cuda").param_groups[0]]
    state: dict = {}
    set_random_grads(params, 0)
    plan = Plan(Rule, groups, state)
    for step in range(3):
        set_random_grads(params, step)
        set_random_grads(twins, step)
        tensors["lr"].fill_(0.25 / (step + 1))
        betas[0].fill_(0.5 - step / 8)
        values = {name: tensor.item() for name, tensor in tensors.items()}
        expected.param_groups[0].update(values, betas=(betas[0].item(), 0.875))
        assert plan.refresh(groups, state)
        plan.run([given])
        expected.step()
    for param, twin in zip(params, twins, strict=True):
        assert_same_bits(param, twin)
        for name, wanted in expected.state[twin].items():
            assert_same_bits(state[param][name], wanted, name)


def test_counts_move_to_the_device_and_stay_there() -> None:
    """A found_inf that only the device knows asks for it; what has been counted is kept."""
    optimizer, twin = make_optimizer(backend="cuda"), make_optimizer(backend="reference")
    for each in (optimizer, twin):
        train(each, range(3))
    assert counts_on_device(optimizer) == {False}
    optimizer.found_inf = torch.zeros(())
    train_step(optimizer, 3)
    optimizer.found_inf = torch.ones(())
    train_step(optimizer, 99)
    del optimizer.found_inf
    train_step(optimizer, 4)
    train(twin, range(3, 5))
    assert counts_on_device(optimizer) == {True}
    assert_same_training(optimizer, twin)


def test_a_checkpoint_goes_either_way() -> None:
    there, here = make_capturable(), make_optimizer(backend="cpu")
    train(there, range(3))
    here.load_state_dict(copy.deepcopy(there.state_dict()))
    for mine, theirs in zip(params_of(here), params_of(there), strict=True):
        mine.data.copy_(theirs.detach())
    assert [group["capturable"] for group in here.param_groups] == [False, False]
    for optimizer in (there, here):
        train(optimizer, range(3, 5))
    assert_same_training(here, there)
    back = make_capturable()
    back.load_state_dict(copy.deepcopy(here.state_dict()))
    for mine, theirs in zip(params_of(back), params_of(here), strict=True):
        mine.data.copy_(theirs.detach())
    for optimizer in (back, here):
        train(optimizer, range(5, 7))
    assert counts_on_device(back) == {True}
    assert_same_training(back, here)


def test_parameters_on_a_cpu_count_there() -> None:
    optimizer, plain = (make_optimizer(backend="cpu") for _ in range(2))
    for group in optimizer.param_groups:
        group["capturable"] = True
    for each in (optimizer, plain):
        train(each, range(2))
    assert counts_on_device(optimizer) == {False}
    assert_same_training(optimizer, plain)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_capturable_is_a_switch(value: object) -> None:
    with pytest.raises(TypeError, match=f"capturable must be True or False, got {value!r}"):
        AdaMod(random_params((3,)), capturable=value)
