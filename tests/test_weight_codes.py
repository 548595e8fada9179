"""weights.h against its oracle codes.py, bit for bit, and what split weights promise."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same_bits
from native_codes import NativeCodes
from test_codes import EDGES, RANDOM_EDGES, SIGN, float_of, words

from adamod_fused import codes

# Patterns at which bfloat16 changes too: halves of its spacing, and next to them.
HALVES = [(upper << 16) + by for upper in (0, 1, 0x3F80, 0x7F7E, 0x7F7F) for by in (0x7FFF, 0x8000)]
PATTERNS = torch.cat(
    [torch.tensor([*EDGES, *HALVES, *(p | SIGN for p in (*EDGES, *HALVES))]), words(50_000, seed=1)]
)
WEIGHTS = float_of(PATTERNS)


def test_split_loses_nothing() -> None:
    params, remainders = codes.split(WEIGHTS)
    assert_same_bits(codes.joined(params, remainders), WEIGHTS, "joined")
    finite = (WEIGHTS.abs() < 3e38) & ~WEIGHTS.isnan()
    spacing = (params[finite].view(torch.int16) ^ 1).view(torch.bfloat16).double()
    off = (params[finite].double() - WEIGHTS[finite].double()).abs()
    assert (off <= (spacing - params[finite].double()).abs() / 2).all(), "not the nearest"


@pytest.mark.build
def test_header_splits_and_rounds_as_the_oracle(native_codes: NativeCodes) -> None:
    wanted = codes.split(WEIGHTS)
    got = native_codes.split(WEIGHTS)
    for found, expected in zip(got, wanted, strict=True):
        assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
    assert_same_bits(native_codes.joined(*got), codes.joined(*wanted), "joined")
    for random in (*RANDOM_EDGES, None):
        bits = words(len(WEIGHTS), seed=2) if random is None else torch.full(PATTERNS.shape, random)
        rounded = native_codes.stochastically_rounded(WEIGHTS, bits)
        expected = codes.stochastically_rounded(WEIGHTS, bits)
        assert torch.equal(rounded.view(torch.int16), expected.view(torch.int16))
