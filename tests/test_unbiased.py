"""Rounding at random has the right mean, for every format, over elements and over steps."""

from __future__ import annotations

import math

import pytest
import torch
from test_codes import each_code, float_of
from torch import Tensor

from adamod_fused.codes import (
    PARAM_STREAM,
    Code,
    Values,
    key_of,
    random_bits,
    stochastically_rounded,
)

DRAWS = 1 << 20
STANDARD_ERRORS = 4.0
KEY = key_of(3, 1)


def values_across(code: Code, exponent: int) -> list[float]:
    """From the smallest to the largest that a block of this exponent holds, none on its grid."""
    codes = torch.linspace(1, code.top - 1, 7).long()
    low = code.decode(codes, torch.tensor(exponent)).view(torch.int32).long()
    shares = torch.tensor([0.001, 0.25, 0.5, 0.123, 0.9, 0.999, 0.3])
    return float_of(low + (shares * (1 << code.shift)).long()).tolist()


def assert_mean(rounded: Tensor, x: float) -> None:
    """The mean of draws within 4 standard errors of ``x``; their own spread may be too small."""
    draws = rounded.double()
    low, high = draws.min().item(), draws.max().item()
    share = (x - low) / (high - low)
    assert 0 < share < 1, f"{x} lies not between the two it is rounded to, {low} and {high}"
    error = (high - low) * math.sqrt(share * (1 - share) / len(draws))
    assert abs(draws.mean().item() - x) <= STANDARD_ERRORS * error, f"{x}: {draws.mean().item()}"


@each_code
@pytest.mark.parametrize("exponent", [1, 120, 200])
def test_mean_over_elements(code: Code, exponent: int) -> None:
    """All of them at one step, as the elements of a tensor that have one value."""
    random = random_bits(torch.arange(DRAWS), KEY, step=7, stream=code.values.value)
    for sign in (1, -1) if code.is_signed else (1,):
        for x in values_across(code, exponent):
            encoded = code.encode(torch.tensor(sign * x), torch.tensor(exponent), random)
            assert_mean(code.decode(encoded, torch.tensor(exponent)), sign * x)


@each_code
def test_mean_over_steps_of_one_element(code: Code) -> None:
    """Far nearer than chance: a Weyl sequence is off by some hits, whatever the number of steps."""
    steps = 1 << 16
    stream = code.values.value
    start, second = (random_bits(torch.tensor([5]), KEY, s, stream).item() for s in (0, 1))
    random = (start + torch.arange(steps) * ((second - start) % 2**32)) & 0xFFFFFFFF
    for x in values_across(code, 120):
        encoded = code.encode(torch.tensor(x), torch.tensor(120), random)
        draws = code.decode(encoded, torch.tensor(120)).double()
        spacing = (draws.max() - draws.min()).item()
        assert abs(draws.mean().item() - x) <= spacing * math.log(steps) / steps


@each_code
def test_every_dither_once_has_exactly_the_mean(code: Code) -> None:
    """No random bits at all: the shares of rounding up are those that the mean asks for."""
    dithers = torch.arange(1 << code.shift) << (32 - code.shift)
    for x in values_across(code, 120):
        encoded = code.encode(torch.tensor(x), torch.tensor(120), dithers)
        draws = code.decode(encoded, torch.tensor(120)).double()
        assert draws.mean().item() == x


def test_signed_values_below_the_range_keep_their_mean() -> None:
    random = random_bits(torch.arange(DRAWS), KEY, step=7, stream=0)
    for num_bytes in (1, 2):
        code = Code(Values.OF_BOTH_SIGNS, num_bytes)
        for share in (0.001, 0.3, 0.999):
            for x in (share * 2.0 ** (120 - 127), -share * 2.0 ** (120 - 127)):
                encoded = code.encode(torch.tensor(x), torch.tensor(120), random)
                assert_mean(code.decode(encoded, torch.tensor(120)), torch.tensor(x).item())


@pytest.mark.parametrize("x", [1.0001, 0.0302, -7.77e-20, 3.1e38, 1e-39])
def test_mean_of_stochastic_weights(x: float) -> None:
    random = random_bits(torch.arange(DRAWS), KEY, step=9, stream=PARAM_STREAM)
    weights = torch.full((DRAWS,), x)
    assert_mean(stochastically_rounded(weights, random), weights[0].item())


@pytest.mark.parametrize("x", [1.0001, 0.0302, -7.77e-20, 3.1e38, 1e-39])
def test_every_dither_once_has_exactly_the_mean_of_weights(x: float) -> None:
    weights = torch.full((1 << 16,), x)
    rounded = stochastically_rounded(weights, torch.arange(1 << 16) << 16)
    assert rounded.double().mean().item() == weights[0].item()
