"""Weight decay in float32, against float64: what one step takes off, and what many take off.

A step writes ``p - (k * p + u)``: p the weight, u the update, k = float32(lr * weight_decay). With
e = 2^-24, half the spacing of float32 numbers near 1:

- k and the product k * p round once each: the decay term is within (2 + e) e of float64's, relative
  to itself, however small lr * weight_decay is.
- The sum rounds once, by at most e |k * p + u|.
- The new weight rounds once, by at most half the spacing of float32 numbers there.

The factor 1 - lr * weight_decay would be wrong by up to e / 2 times the weight, at every step in
the same direction: more than the decay itself where lr * weight_decay is less than e / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from adamod_fused import AdaMod
from adamod_fused.reference import AdaMod as Rule

LR = 1e-3
RATES = [1e-2, 1e-4, 1e-6, 1e-7, 3e-8, 1e-8]  # lr * weight_decay
E = 2.0**-24
BACKENDS = ["reference", "cpu"]


def spacing(x: Tensor) -> Tensor:
    """Between float32 numbers at the magnitude of ``x``, in float64."""
    x = x.abs()
    return torch.nextafter(x, torch.full_like(x, torch.inf)).double() - x.double()


class Training:
    """Random weights, and zeros with the same gradients, whose step is the update alone."""

    def __init__(self, make: Callable[..., Optimizer], numel: int, **options: Any) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.weight = Parameter(torch.randn(numel, generator=self.generator))
        self.zero = Parameter(torch.zeros(numel))
        self.optimizer = make([self.weight, self.zero], lr=LR, betas=(0.8, 0.95), **options)

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights before and after a step with random gradients, and the updates: float64."""
        self.zero.detach().zero_()
        grad = torch.randn(self.weight.shape, generator=self.generator)
        self.weight.grad, self.zero.grad = grad, grad
        before = self.weight.detach().double()
        self.optimizer.step()
        return before, self.weight.detach().double(), -self.zero.detach().double()

    def decay(self, rate: float) -> tuple[float, float, float]:
        """Over a million steps of single weights: what decay took off, and what it ought to.

        Last the sum of the squares of what the roundings of a step may add to it; see
        ``test_the_mean_decay_of_many_steps_is_that_of_float64``.
        """
        for _ in range(8):  # the first updates have all the same size
            self.step()
        decayed = expected = squares = 0.0
        for _ in range(16):
            before, after, update = self.step()
            assert update.std() > 100 * spacing(after.float()).max()
            decayed += ((before - after - update) * before.sign()).sum().item()
            expected += (rate * before.abs()).sum().item()
            rounding = spacing(after.float()) / 2 + 1.001 * E * (rate * before + update).abs()
            squares += rounding.square().sum().item()
        return decayed, expected, squares


@pytest.mark.parametrize("rate", RATES)
def test_the_decay_term_is_within_1e_6_of_float64s(rate: float) -> None:
    numbers = {"lr": LR, "betas": (0.9, 0.999), "beta3": 0.999, "eps": 1e-8}
    scalars = Rule.prepare(1, **numbers, weight_decay=rate / LR, variant="paper", maximize=False)
    weight = torch.linspace(0.5, 2, 10_001)
    term = torch.tensor(scalars.weight_decay_rate, dtype=torch.float32) * weight
    exact = rate * weight.double()
    assert ((term.double() - exact).abs() <= 1e-6 * exact).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", RATES)
def test_a_step_rounds_the_weight_once(rate: float, backend: str) -> None:
    """To the number nearest to float64's result, but for the errors of the terms."""
    training = Training(AdaMod, 20_000, beta3=0.9, weight_decay=rate / LR, backend=backend)
    for _ in range(3):
        before, after, update = training.step()
        step = rate * before + update
        wrong = (after - (before - step)).abs()
        of_terms = 2.001 * E * rate * before.abs() + 1.001 * E * step.abs()
        assert (wrong <= spacing(after.float()) / 2 + of_terms).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", RATES)
def test_the_mean_decay_of_many_steps_is_that_of_float64(rate: float, backend: str) -> None:
    """What steps took off beyond their updates, against the sum of lr * weight_decay * |p|.

    By the above each step of a weight is off by at most (2 + e) e of its decay, perhaps always in
    the same direction, and by two roundings, together at most r = spacing / 2 + e |k * p + u|.
    Roundings are independent and have mean 0, since updates are spread over hundreds of spacings.
    By Hoeffding's inequality their sum exceeds sqrt(2 ln(2 / a) * sum of r^2) with a probability
    of at most a.
    """
    training = Training(AdaMod, 1 << 16, beta3=0.9, weight_decay=rate / LR, backend=backend)
    decayed, expected, squares = training.decay(rate)
    a = 1e-9
    bound = 2.001 * E * expected + math.sqrt(2 * math.log(2 / a) * squares)
    assert bound < 0.05 * expected
    assert abs(decayed - expected) <= bound


# The second is 0 where it is used, in float32.
@pytest.mark.parametrize("weight_decay", [0.0, 1e-50])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_decay_weights_keep_their_bits(backend: str, weight_decay: float) -> None:
    values = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1.5, 3e38])
    weight = Parameter(values.clone())
    optimizer = AdaMod([weight], weight_decay=weight_decay, backend=backend)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert_same_bits(weight, values)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight.tolist()[:2] == [torch.inf, -torch.inf]


@pytest.mark.parametrize("backend", BACKENDS)
def test_decay_makes_an_infinite_weight_nan_and_no_other(backend: str) -> None:
    weight = Parameter(torch.tensor([torch.inf, -torch.inf, 0.0, 3.4e38, -1.5]))
    optimizer = AdaMod([weight], weight_decay=0.1, backend=backend)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight.isnan().tolist() == [True, True, False, False, False]
    assert weight[2:].isfinite().all()
