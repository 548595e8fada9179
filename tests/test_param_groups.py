"""Param groups: hyperparameters of their own, changed, added, empty or bad."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
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
    train_step,
)
from torch import nn

from adamod_fused import AdaMod

DIFFERING = {
    "lr": 0.5,
    "betas": (0.3, 0.6),
    "beta3": 0.2,
    "eps": 1e-2,
    "weight_decay": 0.7,
    "variant": "paper",
    "maximize": False,
}


@pytest.mark.parametrize("name", DIFFERING)
def test_each_group_has_every_hyperparameter_of_its_own(name: str, backend: str) -> None:
    params, twins = random_params((5,), (6,)), random_params((5,), (6,))
    other = {**OPTIONS, name: DIFFERING[name]}
    together = AdaMod(
        [{"params": params[:1]}, {"params": params[1:], name: DIFFERING[name]}],
        **OPTIONS,
        backend=backend,
    )
    apart = AdaMod(twins[:1], **OPTIONS), AdaMod(twins[1:], **other)
    changed = AdaMod(random_params((5,), (6,)), **OPTIONS)
    for step in range(3):
        train_step(together, step)
        set_random_grads(twins, step)
        for optimizer in apart:
            optimizer.step()
    train(changed, range(3))
    for param, twin in zip(params, twins, strict=True):
        assert_same_bits(param, twin)
    assert not torch.equal(params[1], params_of(changed)[1]), f"{name} of the group had no effect"


@pytest.mark.parametrize("name", DIFFERING)
def test_hyperparameters_may_change_between_steps(name: str) -> None:
    optimizers = [
        AdaMod(random_params(*SHAPES), **OPTIONS, backend=b) for b in ("cpu", "reference")
    ]
    for optimizer in optimizers:
        train(optimizer, range(2))
        optimizer.param_groups[0][name] = DIFFERING[name]
        train(optimizer, range(2, 4))
    assert_same_training(*optimizers)
    unchanged = AdaMod(random_params(*SHAPES), **OPTIONS)
    train(unchanged, range(4))
    assert not torch.equal(params_of(optimizers[0])[0], params_of(unchanged)[0])


def test_backend_may_differ_by_group_and_change_between_steps() -> None:
    mixed_params, plain = random_params(*SHAPES), AdaMod(random_params(*SHAPES), **OPTIONS)
    mixed = AdaMod(
        [
            {"params": mixed_params[:2], "backend": "cpu"},
            {"params": mixed_params[2:], "backend": "reference"},
        ],
        **OPTIONS,
    )
    for step in range(4):
        train_step(mixed, step)
        train_step(plain, step)
        for group in mixed.param_groups:
            group["backend"] = "reference" if group["backend"] == "cpu" else "cpu"
    assert_same_training(mixed, plain)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_group_may_be_empty(place: int, backend: str) -> None:
    params = random_params(*SHAPES)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    groups.insert(place, {"params": [], "lr": 0.5})
    optimizer = AdaMod(groups, **OPTIONS, backend=backend)
    plain = AdaMod(random_params(*SHAPES), **OPTIONS)
    train(optimizer, range(3))
    train(plain, range(3))
    assert_same_training(optimizer, plain)


def test_named_parameters_keep_their_names() -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    named = AdaMod(model.named_parameters(), **OPTIONS)
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    unnamed = AdaMod(twin.parameters(), **OPTIONS)
    train(named, range(3))
    train(unnamed, range(3))
    assert_same_training(named, unnamed)
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("as_generator", [False, True])
def test_add_param_group_in_mid_training(as_generator: bool, backend: str) -> None:
    params, twins = random_params(*SHAPES), random_params(*SHAPES)
    optimizer = AdaMod(params[:2], **OPTIONS, backend=backend)
    apart = [AdaMod(twins[:2], **OPTIONS), AdaMod(twins[2:], **{**OPTIONS, "lr": 0.5})]
    train(optimizer, range(2))
    train(apart[0], range(2))
    added = (p for p in params[2:]) if as_generator else params[2:]
    optimizer.add_param_group({"params": added, "lr": 0.5})
    for step in range(2, 5):
        set_random_grads(params, step)
        set_random_grads(twins, step)
        for each in (optimizer, *apart):
            each.step()
    assert optimizer.state[params[0]]["step"] == 5
    assert optimizer.state[params[-1]]["step"] == 3
    for param, twin in zip(params, twins, strict=True):
        assert_same_bits(param, twin)


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": -1.0},
        {"backend": "fpga"},
        {"params": [nn.Parameter(torch.ones(2, dtype=torch.cfloat))]},
        {"params": [torch.ones(2), torch.ones(2, dtype=torch.int32)]},
        {"params": "weights"},
        {"params": [nn.Parameter(torch.ones(2)) * 1]},  # no leaf
    ],
    ids=lambda bad: str(next(iter(bad))),
)
def test_a_bad_group_leaves_the_optimizer_unchanged(bad: dict, backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    twin = AdaMod(random_params(*SHAPES), **OPTIONS)
    train(optimizer, range(2))
    before = Snapshot(optimizer)
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group({"params": [torch.ones(3)], **bad})
    before.assert_unchanged()
    train(optimizer, range(2, 3))
    train(twin, range(3))
    assert_same_training(optimizer, twin)


def test_a_groups_parameters_may_stand_in_a_tuple(backend: str) -> None:
    params = random_params((3,), (2, 2))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    optimizer.param_groups[0]["params"] = tuple(params)
    for step in range(2):
        set_random_grads(params, step)
        optimizer.step()
    assert all(optimizer.state[param]["step"] == 2 for param in params)


def test_numbers_of_any_kind_step_as_floats(backend: str) -> None:
    params = [random_params((3,), seed=1)[0] for _ in range(2)]
    exact = {"lr": 0.5, "eps": 0.25, "beta3": 0.75, "betas": (0.5, 0.25)}
    odd = {"lr": np.float32(0.5), "eps": Fraction(1, 4), "beta3": np.float16(0.75)}
    odd["betas"] = (Decimal("0.5"), Fraction(1, 4))
    optimizers = [
        AdaMod([param], **given, backend=backend)
        for param, given in zip(params, (exact, odd), strict=True)
    ]
    for optimizer in optimizers:
        train(optimizer, range(2))
    assert_same_training(*optimizers)
