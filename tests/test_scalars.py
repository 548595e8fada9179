"""Scalars prepared in C++ are those of the reference, bit for bit."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
import torch

from adamod_fused.backends import extension
from adamod_fused.reference import AdaMod

STEPS = [*range(40), 99, 999, 1000, 65535, 65536, 10**6 + 1, 2**24 - 1, 2**24]


def prepared(step: int, hyperparameters: dict[str, Any]) -> list[float]:
    """The row that the compiled table makes for a tensor that has done ``step`` steps."""
    table = extension.core.Table(list(AdaMod.states), 1, True)
    param = torch.zeros(1)
    table.add_param(param, 0, table.add_batch(1, False), torch.float32, [1])
    states = tuple([torch.zeros(1)] for _ in AdaMod.states)
    assert table.load([param], [torch.zeros(1)], states, [torch.tensor(float(step))])
    table.prepare(AdaMod.name, [AdaMod.hyperparameters(**hyperparameters)])
    return [value for (value,) in struct.iter_unpack("f", bytes(table.scalars))]


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("step", STEPS)
def test_a_row_of_scalars(step: int, variant: str) -> None:
    rng = random.Random(step)
    for _ in range(20):
        hyperparameters = {
            "lr": 10 ** rng.uniform(-8, 1),
            "betas": (rng.choice([0.0, 0.9, rng.random()]), 1 - 10 ** rng.uniform(-8, -1)),
            "beta3": rng.choice([0.0, 0.999, rng.random()]),
            "eps": rng.choice([0.0, 1e-8, rng.random()]),
            "weight_decay": rng.choice([0.0, 0.1, rng.random()]),
            "variant": variant,
            "maximize": rng.random() < 0.5,
        }
        expected = AdaMod.prepare(step + 1, **hyperparameters)
        rounded = torch.tensor(list(expected), dtype=torch.float64).float().tolist()
        assert prepared(step, hyperparameters) == rounded


def test_a_rule_that_does_not_exist() -> None:
    table = extension.core.Table(list(AdaMod.states), 1, True)
    param = torch.zeros(1)
    table.add_param(param, 0, table.add_batch(1, False), torch.float32, [1])
    states = tuple([torch.zeros(1)] for _ in AdaMod.states)
    assert table.load([param], [torch.zeros(1)], states, [torch.tensor(0.0)])
    with pytest.raises(ValueError, match="no rule named nothing"):
        table.prepare("nothing", [(0.0,)])
