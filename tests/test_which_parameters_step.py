"""Parameters without a gradient, frozen, empty, 0-dim or lazy: which of them a step moves."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
    train,
)
from torch import nn

from adamod_fused import AdaMod


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool, backend: str) -> None:
    (param,) = random_params((4,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    train(optimizer, range(1))
    optimizer.zero_grad(set_to_none=set_to_none)
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(before, param) == set_to_none
    assert optimizer.state[param]["step"] == (1 if set_to_none else 2)


def test_parameters_without_a_gradient_are_untouched_and_count_for_themselves(backend: str) -> None:
    params, twins = random_params(*SHAPES), random_params(*SHAPES)
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    apart = [AdaMod([twin], **OPTIONS, backend=backend) for twin in twins]
    counts = [0] * len(params)
    for step in range(6):
        set_random_grads(params, step)
        set_random_grads(twins, step)
        for i, (param, twin) in enumerate(zip(params, twins, strict=True)):
            if (step + i) % 3 == 0 or step < i:
                param.grad = twin.grad = None
            else:
                counts[i] += 1
        versions = [param._version for param in params]
        optimizer.step()
        for param, version, each in zip(params, versions, apart, strict=True):
            each.step()
            assert (param._version == version) == (param.grad is None)
            assert (param in optimizer.state) == (params_of(each)[0] in each.state)
    assert [int(optimizer.state[p]["step"]) for p in params] == counts
    for param, each in zip(params, apart, strict=True):
        (twin,) = params_of(each)
        assert_same_bits(param, twin)
        for name, state in each.state[twin].items():
            assert_same_bits(optimizer.state[param][name], state, name)


def test_nothing_to_step(backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    before = Snapshot(optimizer)
    optimizer.step()
    before.assert_unchanged()


def test_frozen_parameters_are_carried_along(backend: str) -> None:
    trained, frozen = random_params((3,), (3,))
    frozen.requires_grad_(False)
    integers = nn.Parameter(torch.arange(3), requires_grad=False)
    quantized = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    params = [frozen, integers, trained, quantized]
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    versions = [p._version for p in params]
    for step in range(3):
        set_random_grads([trained], step)
        optimizer.step()
    assert [p._version == v for p, v in zip(params, versions, strict=True)] == [
        p is not trained for p in params
    ]
    assert list(optimizer.state) == [trained]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    frozen.requires_grad_(True)
    train_both = [frozen, trained]
    set_random_grads(train_both, 3)
    optimizer.step()
    assert optimizer.state[frozen]["step"] == 1
    assert optimizer.state[trained]["step"] == 4


@pytest.mark.parametrize("shapes", [((5,), (0,)), ((0,), (5,)), ((0,),), ((2, 0, 3), ()), ((),)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_empty_and_0_dim_parameters(shapes: tuple, dtype: torch.dtype) -> None:
    optimizers = [
        AdaMod(random_params(*shapes, dtype=dtype), **OPTIONS, backend=b)
        for b in ("cpu", "reference")
    ]
    for optimizer in optimizers:
        train(optimizer, range(3))
        for param in params_of(optimizer):
            assert optimizer.state[param]["step"] == 3
            assert optimizer.state[param]["exp_avg_lr"].shape == param.shape
    assert_same_training(*optimizers)


def test_lazy_modules_may_be_given_before_they_know_their_shapes(backend: str) -> None:
    model = nn.LazyLinear(3)
    optimizer = AdaMod(model.parameters(), **OPTIONS, backend=backend)
    optimizer.step()
    model(torch.ones(2, 4)).sum().backward()
    start = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(start, model.weight)
