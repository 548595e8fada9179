"""codes.h against its oracle codes.py, bit for bit, and what codes promise by themselves."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from native_codes import NativeCodes
from torch import Tensor

from adamod_fused import codes
from adamod_fused.codes import BLOCK, Code, Values

ALL = [Code(kind, num_bytes) for num_bytes in (1, 2) for kind in Values]
each_code = pytest.mark.parametrize("code", ALL, ids=lambda c: f"{c.values.name}-{c.num_bytes}")
each_safe_code = pytest.mark.parametrize(
    "code", [c for c in ALL if not c.is_signed], ids=lambda c: f"{c.values.name}-{c.num_bytes}"
)

INF = 0x7F800000
SIGN = 1 << 31
WORD = 0xFFFFFFFF
# Zero, subnormals, normals from the smallest to the largest, inf, NaNs; and neighbours of powers.
EDGES = sorted(
    {0, 1, 2, 0x7FFFFF, INF - 1, INF, INF + 1, 0x7FC00000, 0x7FFFFFFF}
    | {(e << 23) + by for e in (1, 2, 64, 127, 128, 253, 254) for by in (-1, 0, 1, 0x400000)}
)
RANDOM_EDGES = [0, 1, 0xFF, 0x100, 0x7FFFFFFF, 0x80000000, 0xFFFFFF00, WORD]

# Derandomized: what is red is red for whoever runs it.
DRAWN = settings(max_examples=150, derandomize=True, deadline=None, database=None)


def float_of(patterns: Tensor | list[int]) -> Tensor:
    return torch.as_tensor(patterns).to(torch.int64).to(torch.int32).view(torch.float32)


def pattern_of(x: Tensor) -> Tensor:
    return x.view(torch.int32).to(torch.int64) & WORD


def words(count: int, seed: int) -> Tensor:
    return torch.randint(0, 1 << 32, (count,), generator=torch.Generator().manual_seed(seed))


def grid(code: Code, exponents: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of an exponent and a code, flat."""
    pairs = torch.cartesian_prod(exponents, candidates)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def finite_codes(code: Code) -> Tensor:
    unsigned = torch.arange(code.top + 1)
    if not code.is_signed:
        return unsigned
    return torch.cat([unsigned, unsigned[1:] | (1 << (code.bits - 1))])


@pytest.mark.build
@each_code
def test_header_decodes_all_codes_as_the_oracle(native_codes: NativeCodes, code: Code) -> None:
    every = torch.arange(1 << code.bits)
    every = every[(every & ((1 << (code.bits - code.is_signed)) - 1)) <= code.top + 2]
    for some in torch.arange(1, 255).split(32):
        exponents, candidates = grid(code, some, every)
        wanted = code.decode(candidates, exponents)
        got = native_codes.decode(code.values, code.num_bytes, candidates, exponents)
        assert_same_bits(got, wanted, "decoded")


patterns = st.lists(
    st.one_of(st.integers(0, WORD), st.sampled_from([*EDGES, *(e | SIGN for e in EDGES)])),
    min_size=1,
    max_size=3 * BLOCK,
)


@pytest.mark.build
@each_code
@DRAWN
@given(drawn=patterns, data=st.data())
def test_header_encodes_as_the_oracle(
    native_codes: NativeCodes, code: Code, drawn: list[int], data: st.DataObject
) -> None:
    x = float_of(drawn)
    random = torch.tensor(
        data.draw(
            st.lists(
                st.one_of(st.integers(0, WORD), st.sampled_from(RANDOM_EDGES)),
                min_size=len(x),
                max_size=len(x),
            )
        )
    )
    padded = torch.nn.functional.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
    exponents = code.exponents(padded)
    got = native_codes.exponents(code.values, code.num_bytes, x)
    assert got.tolist() == exponents.flatten().tolist()
    any_exponent = data.draw(st.integers(1, 254))
    for each in (exponents.expand(-1, BLOCK).flatten()[: len(x)], torch.tensor(any_exponent)):
        wanted = code.encode(x, each, random)
        native = native_codes.encode(code.values, code.num_bytes, x, each.expand(len(x)), random)
        assert native.tolist() == wanted.tolist()


@pytest.mark.build
@each_code
def test_header_encodes_many_patterns_as_the_oracle(native_codes: NativeCodes, code: Code) -> None:
    x, random = float_of(words(1 << 18, seed=1)), words(1 << 18, seed=2)
    exponents = words(1 << 18, seed=3) % 254 + 1
    wanted = code.encode(x, exponents, random)
    got = native_codes.encode(code.values, code.num_bytes, x, exponents, random)
    assert torch.equal(got, wanted)


@pytest.mark.build
def test_header_draws_the_oracles_random_bits(native_codes: NativeCodes) -> None:
    around = [0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 32) + 1]
    around += [(1 << 33) + 7, (1 << 40) - 1, (1 << 62) + 12345]
    indices = torch.cat([torch.tensor(around), torch.arange((1 << 32) - 500, (1 << 32) + 500)])
    keys = (0, 1, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1, codes.key_of(0, 0), codes.key_of(7, 3))
    steps = (0, 1, 2, 1000, (1 << 24) - 1, (1 << 24) + 2, WORD)
    for key, step, stream in itertools.product(keys, steps, range(codes.NUM_STREAMS)):
        wanted = codes.random_bits(indices, key, step, stream)
        got = native_codes.random_bits(indices, key, step, stream)
        assert torch.equal(got, wanted), (key, step, stream)


@each_code
def test_coding_again_is_exact(code: Code) -> None:
    """Whatever the random bits and the exponent, as long as the value lies in its range."""
    candidates = finite_codes(code)
    for exponent in (1, 100, 230):
        x = code.decode(candidates, torch.tensor(exponent))
        if not x.isfinite().all():
            continue
        for other in (exponent, exponent + 1, exponent + 7, max(1, exponent - 3)):
            largest = code.decode(torch.tensor(code.top), torch.tensor(other))
            smallest = code.decode(torch.tensor(1), torch.tensor(other))
            inside = x[(x == 0) | ((x.abs() >= smallest) & (x.abs() <= largest))]
            for random in (torch.tensor(0), torch.tensor(WORD), words(len(inside), seed=other)):
                again = code.encode(inside, torch.tensor(other), random)
                assert_same_bits(code.decode(again, torch.tensor(other)), inside, "coded again")


@each_code
def test_a_code_has_the_two_neighbours_of_a_value_alone(code: Code) -> None:
    """Up where the random bits are large enough, down elsewhere, and never past a neighbour."""
    exponent = torch.tensor(120)
    below = torch.arange(1, code.top).repeat_interleave(4)
    share = torch.arange(len(below)) * 977 % (1 << code.shift)
    low = pattern_of(code.decode(below, exponent))
    x = float_of(low + share)
    up = code.encode(x, exponent, torch.tensor(WORD))
    down = code.encode(x, exponent, torch.tensor(0))
    assert torch.equal(down, below)
    assert torch.equal(up, below + (share > 0))
    threshold = (1 << code.shift) - share  # the least upper bits of `random` that round up
    for by, wanted in ((0, below + (share > 0)), (-1, below)):
        upper = (threshold + by).clamp(max=(1 << code.shift) - 1)
        assert torch.equal(code.encode(x, exponent, upper << (32 - code.shift)), wanted)


@each_safe_code
def test_nothing_becomes_zero_that_is_not(code: Code) -> None:
    x = float_of(torch.cat([torch.tensor(EDGES[1:]), words(10_000, seed=5) & 0x7FFFFFFF | 1]))
    for exponent in (1, 2, 100, 127, 200, 253, 254):
        for random in (torch.tensor(0), torch.tensor(WORD), words(len(x), seed=exponent)):
            assert (code.encode(x, torch.tensor(exponent), random) > 0).all()


@each_code
def test_exponents_hold_the_value_that_matters(code: Code) -> None:
    """The largest, rounded up, and none smaller would do; or the smallest."""
    edges = torch.tensor([(e << 23) + m for e in range(255) for m in (0, 1, 0x3FFFFF, 0x7FFFFF)])
    # Around the tops of blocks, where one exponent gives way to the next.
    tops = torch.arange(1, 255) << 23
    tops = torch.cat([tops + ((code.top - 1) << code.shift) + by for by in (-1, 0, 1)])
    magnitudes = torch.cat([edges, tops[tops < INF], words(10_000, seed=6) % INF])
    magnitudes = magnitudes[magnitudes > 0]
    found = code.exponents(float_of(magnitudes).unsqueeze(1)).flatten()
    assert found.min() >= 1
    assert found.max() <= 254
    if code.values is Values.SAFE_TOO_SMALL:
        assert torch.equal(found, (magnitudes >> 23).clamp(min=1))
        return
    # Patterns grow with what they stand for; inf's own is out of reach of a finite top code.
    top = (found << 23) + ((code.top - 1) << code.shift)
    assert (magnitudes <= top).all()
    smaller = top - (1 << 23)
    assert ((magnitudes > smaller) | (found == 1)).all()
    # Whatever it is rounded to is finite.
    rounded = code.decode(code.encode(float_of(magnitudes), found, torch.tensor(WORD)), found)
    fits = magnitudes <= INF - (1 << code.shift)
    assert rounded[fits].isfinite().all()


@each_code
def test_inf_and_nan_stay_and_leave_their_block_alone(code: Code) -> None:
    finite = float_of(words(BLOCK, seed=7) % (8 << 23) + (120 << 23)).unsqueeze(0)
    spoiled = finite.clone()
    spoiled[0, 3], spoiled[0, 9] = float("inf"), float("nan")
    assert torch.equal(
        code.exponents(spoiled), code.exponents(finite.index_fill(1, torch.tensor([3, 9]), 0.0))
    )
    exponents, random = code.exponents(spoiled), words(BLOCK, seed=8)
    got = code.decode(code.encode(spoiled, exponents, random), exponents)
    assert got[0, 3] == float("inf")
    assert got[0, 9].isnan()
    wanted = code.decode(code.encode(finite, exponents, random), exponents)
    others = [i for i in range(BLOCK) if i not in (3, 9)]
    assert_same_bits(got[0, others], wanted[0, others], "the others")
    if code.is_signed:
        minus = code.encode(-spoiled[:, 3], torch.tensor(100), torch.tensor(0))
        assert code.decode(minus, torch.tensor(100)).item() == -float("inf")


@each_code
def test_zeros_of_either_sign_are_the_code_zero(code: Code) -> None:
    x = torch.tensor([0.0, -0.0])
    for random in (0, WORD):
        encoded = code.encode(x, torch.tensor(127), torch.tensor(random))
        assert encoded.tolist() == [0, 0]
    assert code.decode(torch.tensor([0]), torch.tensor(254)).item() == 0


def test_ninth_bit_lies_in_the_byte_before() -> None:
    kinds = (Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE, Values.SAFE_TOO_SMALL)
    numel = 45  # the last block is not full
    states = [torch.randn(numel).abs() * 10.0**-k * (-1) ** (k == 0) for k in range(3)]
    random = [words(numel, seed=k) for k in range(3)]
    coded, exponents = codes.encode(kinds, 1, states, random)
    assert exponents.shape == (2, 3)
    assert all(c.shape == (numel,) and c.dtype == torch.uint8 for c in coded)
    unpacked = [
        Code(kind, 1).encode(
            state, exponents[:, k].to(torch.int64).repeat_interleave(BLOCK)[:numel], bits
        )
        for k, (kind, state, bits) in enumerate(zip(kinds, states, random, strict=True))
    ]
    assert {0, 1} == set((unpacked[1] >> 8).tolist()), "both values of the bit are to be seen"
    assert torch.equal(coded[0].long(), unpacked[0] + 128 * (unpacked[1] >> 8))
    assert torch.equal(coded[1].long(), unpacked[1] & 255)
    assert torch.equal(coded[2].long(), unpacked[2])


@pytest.mark.parametrize("num_bytes", [1, 2])
def test_states_survive_being_coded_again(num_bytes: int) -> None:
    kinds = (Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE, Values.SAFE_TOO_SMALL)
    states = [torch.randn(100), torch.randn(100).square(), torch.rand(100) + 0.1]
    random = [words(100, seed=k) for k in range(3)]
    once = codes.decode(kinds, *codes.encode(kinds, num_bytes, states, random))
    again = codes.decode(kinds, *codes.encode(kinds, num_bytes, once, random[::-1]))
    for first, second in zip(once, again, strict=True):
        assert_same_bits(second, first, "state")
