"""What random_bits.h promises: bits uniform over elements, and independent of other streams'.

So at every step. Over the steps of one element they are evener than chance.
Over steps each stream is a Weyl sequence by design, so that nothing here asks steps to be
independent of each other. All inputs are fixed: what is red is red for whoever runs it.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from adamod_fused.codes import _WEYL, NUM_STREAMS, PARAM_STREAM, key_of, random_bits

COUNT = 1 << 18
ELEMENTS = torch.arange(COUNT)
KEY = key_of(0, 0)
# The first, where many elements start at once; later ones; steps that differ in upper bits alone.
STEPS = (1, 2, 1000, 65536, 1 << 20)
STREAMS = range(NUM_STREAMS)

# Of a normal variable |z| > 4 once in 16,000; no test here asks more than some 100 times.
STANDARD_ERRORS = 4.0


def chi_square_deviation(counts: Tensor) -> float:
    """How many standard deviations the counts are less even than chance, or more where below 0."""
    expected = counts.sum().item() / counts.numel()
    freedom = counts.numel() - 1
    statistic = ((counts.double() - expected).square().sum() / expected).item()
    # Wilson and Hilferty: the cube root of a chi-square variable is next to normal.
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard errors, of words as numbers."""
    a, b = a.double() - 2.0**31, b.double() - 2.0**31
    variance = 2.0**64 / 12
    return ((a * b).mean() / variance).item() * math.sqrt(len(a))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("step", STEPS)
def test_uniform_over_elements(step: int, stream: int) -> None:
    """In the upper bits, which round 8-bit codes, and in all of the 24 that any rounding reads."""
    bits = random_bits(ELEMENTS, KEY, step, stream)
    for lowest in (24, 16, 8):
        counts = torch.bincount(bits >> lowest & 255, minlength=256)
        assert abs(chi_square_deviation(counts)) < STANDARD_ERRORS, f"bits from {lowest}"


@pytest.mark.parametrize("start", [(1 << 32) - COUNT // 2, 1 << 40, 12345])
def test_uniform_wherever_the_elements_lie(start: int) -> None:
    bits = random_bits(ELEMENTS + start, KEY, 5, 1)
    assert abs(chi_square_deviation(torch.bincount(bits >> 22, minlength=1024))) < STANDARD_ERRORS


@pytest.mark.parametrize("stride", [2, 32, 4096, 65536, 1 << 24])
def test_uniform_over_every_so_manyth_element(stride: int) -> None:
    """As a column of a matrix is, or the same element of every block."""
    bits = random_bits(torch.arange(1 << 16) * stride, KEY, 3, 0)
    assert abs(chi_square_deviation(torch.bincount(bits >> 24, minlength=256))) < STANDARD_ERRORS


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(STREAMS, 2)))
def test_streams_are_independent(a: int, b: int) -> None:
    for step in STEPS:
        first, second = (random_bits(ELEMENTS, KEY, step, stream) for stream in (a, b))
        assert abs(correlation(first, second)) < STANDARD_ERRORS
        joint = torch.bincount((first >> 27) << 5 | second >> 27, minlength=1024)
        assert abs(chi_square_deviation(joint)) < STANDARD_ERRORS


def test_upper_bits_of_the_states_streams_have_none_in_common() -> None:
    """At the start, where all three are one word with other bytes on top."""
    streams = range(PARAM_STREAM)
    upper = [random_bits(ELEMENTS, KEY, 0, stream) >> 24 for stream in streams]
    for bit in range(8):
        for a, b in itertools.combinations(streams, 2):
            for other in range(8):
                equal = (upper[a] >> bit & 1) == (upper[b] >> other & 1)
                errors = (equal.double().mean().item() - 0.5) * 2 * math.sqrt(COUNT)
                assert abs(errors) < STANDARD_ERRORS, (a, bit, b, other)


def unevenness_over_steps(a: int, b: int, first: Tensor, second: Tensor) -> float:
    """Of the square that two streams fill from these starts in 256 steps."""
    counts = torch.zeros(256, dtype=torch.int64)
    for step in range(1, 257):
        turned = ((x + step * _WEYL[n]) % 2**32 >> 28 for n, x in ((a, first), (b, second)))
        counts += torch.bincount(sum(x << 4 * n for n, x in enumerate(turned)), minlength=256)
    return chi_square_deviation(counts)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(STREAMS, 2)))
def test_streams_are_independent_over_elements_and_steps(a: int, b: int) -> None:
    """A pair of streams fills the square as evenly as from independent starts.

    By chance alone a pair is at times far less even than independent numbers would be: the steps of
    an element lie on few lines. So this finds turns that go together rather than starts that do.
    """
    generator = torch.Generator().manual_seed(1)
    by_chance = [
        unevenness_over_steps(a, b, *torch.randint(2**32, (2, 1024), generator=generator))
        for _ in range(19)
    ]
    starts = (random_bits(ELEMENTS[:1024], KEY, 0, stream) for stream in (a, b))
    assert unevenness_over_steps(a, b, *starts) <= max(by_chance)


@pytest.mark.parametrize("lag", [1, 2, 32])
def test_neighbours_are_independent(lag: int) -> None:
    for stream, step in itertools.product(STREAMS, STEPS):
        bits = random_bits(ELEMENTS, KEY, step, stream)
        first, second = bits[:-lag], bits[lag:]
        assert abs(correlation(first, second)) < STANDARD_ERRORS
        joint = torch.bincount((first >> 28) << 4 | second >> 28, minlength=256)
        assert abs(chi_square_deviation(joint)) < STANDARD_ERRORS


def test_keys_are_independent() -> None:
    """Of tensors that follow each other, and of seeds that do."""
    pairs = [(key_of(0, n), key_of(0, n + 1)) for n in range(4)]
    pairs += [(key_of(seed, 0), key_of(seed + 1, 0)) for seed in range(4)]
    for a, b in pairs:
        for stream in STREAMS:
            first, second = (random_bits(ELEMENTS, key, 1, stream) for key in (a, b))
            assert abs(correlation(first, second)) < STANDARD_ERRORS, (a, b, stream)
            joint = torch.bincount((first >> 28) << 4 | second >> 28, minlength=256)
            assert abs(chi_square_deviation(joint)) < STANDARD_ERRORS, (a, b, stream)


@pytest.mark.parametrize("stream", STREAMS)
def test_steps_of_an_element_fill_the_range_evenly(stream: int) -> None:
    """Every stretch of n steps has each share of the range about n times that share.

    By three gaps of a Weyl sequence (Sos) the discrepancy of n steps is of order log(n) / n;
    that of n independent numbers is about 1 / sqrt(n).
    """
    for n in (64, 1024, 16384):
        for element, first in ((0, 1), (77, 1), (1 << 33, 100_000)):
            steps = range(first, first + n)
            bits = [random_bits(torch.tensor([element]), KEY, 0, stream).item()]
            weyl = (random_bits(torch.tensor([element]), KEY, 1, stream).item() - bits[0]) % 2**32
            values = torch.tensor([(bits[0] + step * weyl) % 2**32 for step in steps])
            ranked = values.double().sort().values / 2**32
            even = (torch.arange(n).double() + 0.5) / n
            discrepancy = (ranked - even).abs().max().item() + 0.5 / n
            assert discrepancy < 1.2 * math.log(n) / n, (n, element)
            assert discrepancy < 0.6 / math.sqrt(n), (n, element)


def test_keys_of_tensors_differ() -> None:
    keys = {key_of(seed, ordinal) for seed in range(50) for ordinal in range(1000)}
    assert len(keys) == 50_000
    assert all(0 <= key < 1 << 64 for key in keys)
    halves = {key & 0xFFFFFFFF for key in keys} | {key >> 32 for key in keys}
    assert len(halves) > 99_990  # of 100,000 random words some two share one
