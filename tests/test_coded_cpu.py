"""The CPU engine on coded states and weights, against the oracle in pure PyTorch: every bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import OPTIONS, assert_same_bits
from torch import Tensor

from adamod_fused import _C as core
from adamod_fused import codes, reference
from adamod_fused.formats import EXPONENTS, REMAINDER, STATE_FORMATS, Formats

RULE = reference.AdaMod
KINDS = (
    codes.Values.OF_BOTH_SIGNS,
    codes.Values.SAFE_TOO_LARGE,
    codes.Values.SAFE_TOO_SMALL,
)
KEY = 0x1234_5678_9ABC_DEF1
GRAD_SCALE = 0.5
STEPS = 6
SETS = core.cpu_instruction_sets()

COMBINATIONS = [
    (dtype, Formats(state, weight))
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for state in STATE_FORMATS
    for weight in (("plain", "split", "stochastic") if dtype == torch.bfloat16 else ("plain",))
    if (state, weight) != ("fp32", "plain")
]

# What fills no block, one block, several, and groups of them, or leaves one element over.
SIZES = (1, 5, 31, 32, 33, 64, 255, 511, 512, 513, 544, 1000, 6149)


def _in_memory_of(tensor: Tensor, offset: int) -> Tensor:
    """A copy that begins ``offset`` elements behind an aligned address."""
    return torch.cat([tensor.new_zeros(offset), tensor])[offset:]


@dataclass
class Row:
    """One parameter, stepped by the engine in place and by the oracle beside it."""

    param: Tensor
    states: list[Tensor]
    exponents: Tensor
    remainder: Tensor | None
    formats: Formats
    first_index: int

    @staticmethod
    def random(
        numel: int, dtype: torch.dtype, formats: Formats, first_index: int, offset: int
    ) -> Row:
        weights = torch.randn(numel)
        remainder = None
        if formats.weight == "split":
            param, remainder = codes.split(weights)
            remainder = _in_memory_of(remainder, offset)
        else:
            param = weights.to(dtype)
        num_bytes = STATE_FORMATS[formats.state]
        zeros = torch.zeros(numel, dtype={4: torch.float32, **codes.CODE_DTYPES}[num_bytes])
        return Row(
            _in_memory_of(param, offset),
            [_in_memory_of(zeros, offset) for _ in KINDS],
            torch.ones(codes.num_blocks(numel), len(KINDS), dtype=torch.uint8),
            remainder,
            formats,
            first_index,
        )

    def state(self) -> dict[str, Tensor]:
        entries = {"step": torch.zeros(()), **dict(zip(RULE.states, self.states, strict=True))}
        if self.formats.codes_states:
            entries[EXPONENTS] = self.exponents
        if self.remainder is not None:
            entries[REMAINDER] = self.remainder
        return entries

    def coding(self) -> tuple[bool, bool, int, int]:
        return self.formats.codes_states, self.remainder is not None, self.first_index, KEY

    def stepped(self, grad: Tensor, step: int, options: dict[str, Any]) -> Row:
        """What the oracle makes of this row."""
        indices = torch.arange(self.first_index, self.first_index + len(grad))

        def random(stream: int) -> Tensor:
            return codes.random_bits(indices, KEY, step, stream)

        if self.formats.codes_states:
            states = codes.decode(KINDS, self.states, self.exponents)
        else:
            states = [state.clone() for state in self.states]
        weights = (
            self.param.float()
            if self.remainder is None
            else codes.joined(self.param, self.remainder)
        )
        scalars = RULE.prepare(step, **options)
        grad = grad.float() * GRAD_SCALE
        weights, *states = reference.stepped(RULE, scalars, weights, grad, *states)

        param, exponents, remainder = self.param, self.exponents, self.remainder
        if self.formats.codes_states:
            num_bytes = STATE_FORMATS[self.formats.state]
            states, exponents = codes.encode(
                KINDS, num_bytes, states, [random(k) for k in range(len(KINDS))]
            )
        if self.formats.weight == "split":
            param, remainder = codes.split(weights)
        elif self.formats.weight == "stochastic":
            param = codes.stochastically_rounded(weights, random(codes.PARAM_STREAM))
        else:
            param = weights.to(param.dtype)
        return Row(param, states, exponents, remainder, self.formats, self.first_index)


def _assert_same(actual: Row, expected: Row, what: str) -> None:
    assert_same_bits(actual.param, expected.param, f"{what}: parameter")
    if actual.remainder is not None:
        assert_same_bits(actual.remainder, expected.remainder, f"{what}: remainder")
    for name, a, b in zip(RULE.states, actual.states, expected.states, strict=True):
        assert_same_bits(a, b, f"{what}: {name}")
    assert_same_bits(actual.exponents, expected.exponents, f"{what}: exponents")


def _gradients(numel: int, step: int) -> Tensor:
    """Runs of blocks of every scale and spread: ordinary, huge, subnormal moments, zeros.

    As long as a group of blocks and longer, since one block may decide how a group is stepped.
    """
    scales = torch.tensor([0.0, -6.0, 50.0, -126.0, -115.0, -100.0, -40.0, 0.0, 20.0])
    which = torch.arange(codes.num_blocks(numel)) // 21 + step // 3  # which changes at times
    scale = scales[which % len(scales)].repeat_interleave(codes.BLOCK)[:numel]
    spread = torch.randint(-12, 1, (numel,)).float()
    grad = torch.randn(numel) * torch.exp2(scale + spread)
    grad[torch.rand(numel) < 0.1] = 0.0
    grad[160:192] = 0.0  # a block that never learns
    return grad


def _poisoned(grad: Tensor, step: int) -> Tensor:
    if step == 3:
        grad[40:41] = torch.nan
        grad[1:2] = torch.nan
    elif step == 4:
        grad[77:78] = torch.inf
        grad[700:701] = -torch.inf
    return grad


def _check_steps(
    rows: list[Row],
    dtype: torch.dtype,
    isa: str,
    threads: int,
    steps: int,
    offset: int = 0,
    gradients: Callable[[int, int], Tensor] = _gradients,
    **changed: Any,
) -> None:
    options = {**OPTIONS, **changed}
    formats = rows[0].formats
    table = core.Table(list(RULE.states), 1, True)
    table.add_batch(core.cpu_chunk_size, False, *formats)
    state: dict[Tensor, dict[str, Any]] = {row.param: row.state() for row in rows}
    for row in rows:
        layout = list(row.param.stride())
        table.add_param(row.param, 0, 0, row.states[0].dtype, layout, row.coding())
    table.expect_state(state)
    for step in range(1, steps + 1):
        expected = []
        for row in rows:
            limit = torch.finfo(dtype).max
            grad = gradients(row.param.numel(), step).clamp(-limit, limit).to(dtype)
            grad = _poisoned(grad, step)
            row.param.grad = _in_memory_of(grad, offset)
            expected.append(row.stepped(grad, step, options))
        assert table.refresh([{"params": [row.param for row in rows]}], state)
        table.prepare(RULE.name, [RULE.hyperparameters(**options)])
        core.cpu_step(RULE.name, str(dtype)[6:], table, 0, GRAD_SCALE, threads, isa)
        table.advance(0)
        for row, wanted in zip(rows, expected, strict=True):
            _assert_same(row, wanted, f"{row.param.numel()} elements, step {step}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "formats"), COMBINATIONS)
def test_steps_are_the_oracles(isa: str, dtype: torch.dtype, formats: Formats) -> None:
    torch.manual_seed(0)
    # Indices of one row that cross 2^32 within a block, and of others on either side.
    rows = [
        Row.random(numel, dtype, formats, first_index, offset=0)
        for numel, first_index in zip(
            SIZES,
            [0, 7, 2**32, 2**33 + 5, 1, 2, 3, 4, 8, 2**34 - 9, 5, 2**32 - 100, 0],
            strict=True,
        )
    ]
    _check_steps(rows, dtype, isa, threads=1, steps=STEPS)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "formats"), COMBINATIONS)
def test_addresses_that_vectors_do_not_divide(
    isa: str, dtype: torch.dtype, formats: Formats
) -> None:
    torch.manual_seed(1)
    rows = [Row.random(numel, dtype, formats, 0, offset=1) for numel in (257, 999)]
    _check_steps(rows, dtype, isa, threads=1, steps=3, offset=3)


# With no eps, an element that never had a gradient has an infinite bound, and only that.
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_a_bound_alone_is_infinite(isa: str, state_format: str) -> None:
    torch.manual_seed(3)
    rows = [Row.random(1000, torch.float32, Formats(state_format, "plain"), 0, offset=0)]
    _check_steps(rows, torch.float32, isa, threads=1, steps=2, eps=0.0)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("element", [0, 15, 16, 31, 511])
def test_one_infinite_bound_in_a_group(isa: str, element: int) -> None:
    """Whichever vector it lies in: all others of the group have ordinary values."""

    def gradients(numel: int, step: int) -> Tensor:
        grad = torch.rand(numel) + step
        grad[element] = 0.0
        return grad

    rows = [Row.random(512, torch.float32, Formats("8bit", "plain"), 0, offset=0)]
    _check_steps(rows, torch.float32, isa, threads=1, steps=1, gradients=gradients, eps=0.0)


# A thread claims 32,768 elements at a time here, counted over all rows: within the blocks of rows
# whose length no block divides.
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_claims_that_cut_blocks(isa: str, state_format: str) -> None:
    torch.manual_seed(2)
    formats = Formats(state_format, "plain")
    rows = [
        Row.random(numel, torch.float32, formats, 0, offset=0)
        for numel in (7, 40_001, 33, 50_000, 41_100)
    ]
    _check_steps(rows, torch.float32, isa, threads=2, steps=2)


@pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        ("float64", ("8bit", "plain")),
        ("float32", ("8bit", "split")),
        ("float16", ("fp32", "stochastic")),
    ],
)
def test_what_does_not_exist_is_refused(dtype: str, formats: tuple[str, str]) -> None:
    table = core.Table(list(RULE.states), 1, True)
    table.add_batch(core.cpu_chunk_size, False, *formats)
    with pytest.raises(ValueError, match=rf"{dtype}, states of {formats[0]} and .* {formats[1]}"):
        core.cpu_step(RULE.name, dtype, table, 0, 1.0, 1, SETS[0])


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (("4bit", "plain"), "state_format must be fp32, 16bit or 8bit, got 4bit"),
        (("8bit", "exact"), "weight_format must be plain, split or stochastic, got exact"),
    ],
)
def test_a_batch_has_formats_that_exist(formats: tuple[str, str], message: str) -> None:
    table = core.Table(list(RULE.states), 1, True)
    with pytest.raises(ValueError, match=message):
        table.add_batch(core.cpu_chunk_size, False, *formats)


def test_a_batch_keeps_its_formats() -> None:
    table = core.Table(list(RULE.states), 1, True)
    for formats in (Formats(), *(formats for _, formats in COMBINATIONS)):
        batch = table.batch(table.add_batch(core.cpu_chunk_size, False, *formats))
        assert (batch.state_format, batch.weight_format) == formats
        assert batch.is_coded is not formats.are_plain
