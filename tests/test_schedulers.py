"""Schedulers and tensor hyperparameters: as setting by hand what they set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_training,
    random_params,
    train,
    train_step,
)
from torch.optim import lr_scheduler

from adamod_fused import AdaMod


def reduce_on_plateau(optimizer: AdaMod) -> Callable[[], None]:
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return lambda: scheduler.step(1.0)


SCHEDULERS: dict[str, Callable[[AdaMod], Callable[[], None]]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.8**t).step,
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=9).step,
    "CosineAnnealingWarmRestarts": lambda o: (
        lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2).step
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3).step,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.1).step,
    "ReduceLROnPlateau": reduce_on_plateau,
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name: str, tensor_lr: bool, backend: str) -> None:
    lr = torch.tensor(0.0625) if tensor_lr else 0.0625
    scheduled = AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": lr}, backend=backend)
    by_hand = AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": 0.0625}, backend=backend)
    advance = SCHEDULERS[name](scheduled)
    used = set()
    for step in range(8):
        lr, betas = (scheduled.param_groups[0][key] for key in ("lr", "betas"))
        by_hand.param_groups[0].update(lr=float(lr), betas=tuple(float(beta) for beta in betas))
        used.add((float(lr), tuple(float(beta) for beta in betas)))
        train_step(scheduled, step)
        train_step(by_hand, step)
        advance()
    assert_same_training(scheduled, by_hand)
    assert len(used) >= 2
    if name in ("OneCycleLR", "CyclicLR"):
        assert len({betas for _, betas in used}) >= 2


def test_tensor_hyperparameters_are_read_at_every_step(backend: str) -> None:
    lr, beta3 = torch.tensor(0.5), torch.tensor(0.25)
    options = {**OPTIONS, "lr": lr, "beta3": beta3}
    optimizer = AdaMod(random_params(*SHAPES), **options, backend=backend)
    twin = AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": 0.5, "beta3": 0.25}, backend=backend)
    train(optimizer, range(2))
    train(twin, range(2))
    lr.fill_(0.125)
    twin.param_groups[0]["lr"] = 0.125
    train(optimizer, range(2, 4))
    train(twin, range(2, 4))
    assert_same_training(optimizer, twin)
    lr.fill_(-1.0)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="lr must be finite and >= 0"):
        optimizer.step()
    before.assert_unchanged()
