"""The Triton step on coded states and weights: bit for bit the oracle, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from interpreted import INTERPRETED, InChildProcess, Interpreted
from triton_coded_rows import (
    FORMATS,
    CodedRow,
    check,
    decoded,
    label,
    launch,
    make_row,
    update_expected,
)
from triton_rows import HYPERPARAMETERS, rounded, sample

from adamod_fused.codes import BLOCK, Values
from adamod_fused.formats import Formats
from adamod_fused.reference import AdaMod

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")
tl = triton.language

SMALL = (0, 1, 31, 32, 33, 511, 513, 1023, 1024, 1025, 2049, 4096, 4097)


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


def scalars_of(step: int) -> list[AdaMod.Scalars]:
    """Of four groups, each at a step of its own."""
    return [
        rounded(AdaMod.prepare(step + 3 * i, maximize=i % 2 == 1, **hyperparameters))
        for i, hyperparameters in enumerate(HYPERPARAMETERS)
    ]


def run(rows: list[CodedRow], steps: range, generator: torch.Generator) -> None:
    """Steps of AdaMod in the kernel and in the oracle, compared after each."""
    for step in steps:
        for row in rows:
            grad = sample(row.numel, generator)
            # As in training too: gradients of a like size, under which states change slowly.
            grad = grad if step % 2 else torch.randn(row.numel, generator=generator)
            row.set("grad", grad.to(row.expected["grad"].dtype))
        scalars = scalars_of(step)
        launch("adamod", rows, scalars)
        for row in rows:
            update_expected(row, scalars[row.scalars])
        check(rows)


all_formats = pytest.mark.parametrize(("dtype", "formats"), FORMATS, ids=label)
some_formats = pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        (torch.float32, Formats("8bit", "plain")),
        (torch.bfloat16, Formats("16bit", "split")),
        (torch.bfloat16, Formats("fp32", "stochastic")),
    ],
    ids=label,
)


class Cases:
    """What holds in the interpreter and on a GPU."""

    device = ""

    @pytest.fixture
    def generator(self):
        return torch.Generator().manual_seed(20191012)

    def row(self, numel, dtype, formats, number, generator, **options) -> CodedRow:
        return make_row(
            numel, dtype, formats, number, generator, num_scalars=4, device=self.device, **options
        )

    @all_formats
    def test_every_size_in_one_launch(self, dtype, formats, generator):
        rows = [self.row(n, dtype, formats, i, generator) for i, n in enumerate(SMALL)]
        run(rows, range(1, 3), generator)

    @all_formats
    def test_chain_of_steps(self, dtype, formats, generator):
        rows = [self.row(n, dtype, formats, i, generator) for i, n in enumerate((2048, 33))]
        run(rows, range(1, 11), generator)

    @all_formats
    def test_many_chunks(self, dtype, formats, generator):
        rows = [self.row(3 * 4096 + 700, dtype, formats, 2, generator, first_index=10**12 + 7)]
        run(rows, range(1000, 1001), generator)

    @pytest.mark.parametrize("stream", ["param", "grad", "state 0", "state 2", "remainder"])
    @some_formats
    def test_one_stream_not_aligned(self, dtype, formats, stream, generator):
        rows = [
            self.row(n, dtype, formats, i, generator, offsets={stream: i, "exponents": i})
            for i, n in enumerate((4097, 2048, 65))
        ]
        run(rows, range(5, 6), generator)

    @some_formats
    def test_indices_beyond_32_bits(self, dtype, formats, generator):
        """The upper half changes before, within and after blocks of every size."""
        rows = [
            self.row(2100, dtype, formats, i, generator, first_index=2**32 - before)
            for i, before in enumerate((1, 1000, 2048, 2099))
        ]
        run(rows, range(3, 4), generator)

    @all_formats
    def test_indices_beyond_32_bits_within_a_chunk(self, dtype, formats, generator):
        """After a masked block, a whole one may begin where it does not fit into its chunk."""
        first_index = 2**32 - (4096 + 1500)
        rows = [self.row(3 * 4096, dtype, formats, 0, generator, first_index=first_index)]
        run(rows, range(3, 4), generator)

    @pytest.mark.parametrize("state_format", ["16bit", "8bit"])
    def test_every_code_under_every_exponent(self, state_format, generator):
        """What no encoder made up, too: the bytes of a corrupted checkpoint."""
        formats = Formats(state_format, "plain")
        row = self.row(254 * BLOCK, torch.float32, formats, 0, generator)
        largest = 1 << (8 * row.expected["state 0"].dtype.itemsize)
        for name in row.states:
            stored = torch.randint(largest, (row.numel,), generator=generator)
            row.set(name, stored.to(row.expected[name].dtype))
        exponents = torch.arange(len(row.expected["exponents"])) // 3 % 254 + 1
        row.set("exponents", exponents.to(torch.uint8))
        run([row], range(2, 3), generator)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, 1e-45, -0.0])
    @some_formats
    def test_one_extreme_gradient(self, dtype, formats, value, generator):
        """Its block's other elements go on as the oracle says; those of the others too."""
        places = (0, 31, 700, 2049)
        rows = [self.row(2100, dtype, formats, i, generator) for i in range(4)]
        for step in (4, 5):
            for row, place in zip(rows, places, strict=True):
                grad = torch.randn(row.numel, generator=generator).to(dtype)
                grad[place] = value
                row.set("grad", grad)
            scalars = scalars_of(step)
            launch("adamod", rows, scalars)
            for row in rows:
                update_expected(row, scalars[row.scalars])
            check(rows)
        if not torch.tensor(value).isfinite():
            for row, place in zip(rows, places, strict=True):
                exp_avg = decoded(row)[0]
                assert not exp_avg[place].isfinite()
                assert exp_avg.isfinite().sum() == row.numel - 1

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
    @pytest.mark.parametrize("state_format", ["16bit", "8bit"])
    def test_blocks_of_one_extreme_value(self, state_format, value, generator):
        """Without a value that counts, a block's exponent is the smallest."""
        row = self.row(2100, torch.float32, Formats(state_format, "plain"), 0, generator)
        for name in row.states:
            row.set(name, torch.zeros_like(row.expected[name]))
        row.set("grad", torch.full_like(row.expected["grad"], value))
        scalars = scalars_of(1)
        launch("adamod", [row], scalars)
        update_expected(row, scalars[0])
        check([row])
        assert (row.expected["exponents"][0::3] == 1).all()

    @pytest.mark.parametrize("state_format", ["16bit", "8bit"])
    def test_padding_has_no_say(self, state_format, generator):
        """Bounds so large that the one that zeros would get is smaller than all of them."""
        row = self.row(33, torch.float32, Formats(state_format, "plain"), 0, generator)
        row.set("state 2", torch.full_like(row.expected["state 2"], 100))
        exponents = row.expected["exponents"].clone()
        exponents[2::3] = 200
        row.set("exponents", exponents)
        run([row], range(1, 2), generator)

    @pytest.mark.parametrize("grad_scale", [0.25, 3.1415927410125732])
    @some_formats
    def test_grad_scale(self, dtype, formats, grad_scale, generator):
        rows = [self.row(n, dtype, formats, i, generator) for i, n in enumerate((2048, 100))]
        launch("adamod", rows, scalars_of(2), torch.tensor([grad_scale, 0.0], device=self.device))
        for row in rows:
            update_expected(row, scalars_of(2)[row.scalars], grad_scale)
        check(rows)

    @pytest.mark.parametrize("skip", [1.0, -2.0, torch.nan])
    @all_formats
    def test_skip_changes_nothing(self, dtype, formats, skip, generator):
        rows = [self.row(n, dtype, formats, i, generator) for i, n in enumerate((2048, 100))]
        launch("adamod", rows, scalars_of(2), torch.tensor([1.0, skip], device=self.device))
        check(rows)

    @pytest.mark.parametrize("sizes", [[5], [0, 5], [5, 0], [0, 0, 5, 0, 4097, 0, 0]], ids=str)
    @some_formats
    def test_empty_rows(self, dtype, formats, sizes, generator):
        rows = [self.row(n, dtype, formats, i, generator) for i, n in enumerate(sizes)]
        run(rows, range(1, 2), generator)

    @pytest.mark.parametrize("state_format", ["16bit", "8bit"])
    @pytest.mark.parametrize("num_states", [1, 2])
    def test_rule_of_fewer_states(self, num_states, state_format, monkeypatch, generator):
        """The engine serves a rule it has never seen."""
        from adamod_fused.triton_kernels import codes, rules

        kernel, rule = RULES_OF[num_states]
        values = (codes.OF_BOTH_SIGNS, codes.SAFE_TOO_LARGE)[:num_states]
        monkeypatch.setitem(
            rules.RULES, "other", rules.Rule(kernel, None, None, num_states, values)
        )
        formats = Formats(state_format, "plain")
        rows = [
            self.row(n, torch.float32, formats, i, generator, kinds=rule.values)
            for i, n in enumerate((0, 2, 2048, 4099))
        ]
        scalars = [Decays(0.5, 0.5, 0.0, 1.0), Decays(0.9375, 0.25, 0.03125, 7.0)] * 2
        launch("other", rows, scalars)
        for row in rows:
            update_expected(row, scalars[row.scalars], rule=rule)
        check(rows)


class Decays(NamedTuple):
    first: float
    second: float
    weight_decay_rate: float
    step: float


@triton.jit
def momentum(scalars, grad, velocity, state1, state2):
    velocity = tl.load(scalars + 0) * velocity + grad
    return tl.load(scalars + 1) * velocity, velocity, state1, state2


class Momentum:
    values = (Values.OF_BOTH_SIGNS,)

    @staticmethod
    def update(s, grad, velocity):
        velocity = s.first * velocity + grad
        return s.second * velocity, velocity


@triton.jit
def two_averages(scalars, grad, exp_avg, exp_avg_abs, state2):
    exp_avg = tl.load(scalars + 0) * exp_avg + grad
    exp_avg_abs = tl.load(scalars + 1) * exp_avg_abs + tl.abs(grad)
    return exp_avg, exp_avg, exp_avg_abs, state2


class TwoAverages:
    values = (Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE)

    @staticmethod
    def update(s, grad, exp_avg, exp_avg_abs):
        exp_avg = s.first * exp_avg + grad
        return exp_avg, exp_avg, s.second * exp_avg_abs + grad.abs()


RULES_OF = {1: (momentum, Momentum), 2: (two_averages, TwoAverages)}


class TestInterpreted(Cases, Interpreted):
    __test__ = INTERPRETED
    device = "cpu"

    @pytest.mark.parametrize("offset", [0, 1])
    @all_formats
    def test_only_the_tail_is_masked(self, dtype, formats, offset, generator, promises):
        from adamod_fused.triton_kernels import coded

        block = coded.block_size(dtype, formats.state)
        numel = 3 * block + 17
        rows = [self.row(numel, dtype, formats, 0, generator, offsets={"state 1": offset})]
        run(rows, range(1, 2), generator)
        streams = ("param", "grad", "state 0", "state 1", "state 2", "remainder or param")
        assert len(promises) == (0 if offset else 3 * len(streams))

    def test_a_block_of_a_kernel_is_whole_blocks_of_codes(self):
        from adamod_fused.triton_kernels import coded, codes, engine

        assert codes.BLOCK.value == BLOCK
        for dtype, formats in FORMATS:
            assert engine.CHUNK_SIZE % coded.block_size(dtype, formats.state) == 0
        assert engine.CHUNK_SIZE % coded.MASKED_BLOCK_SIZE == 0
        assert [kind.value for kind in Values] == [
            codes.OF_BOTH_SIGNS.value,
            codes.SAFE_TOO_LARGE.value,
            codes.SAFE_TOO_SMALL.value,
        ]


@pytest.mark.gpu
class TestOnGpu(Cases):
    __test__ = not INTERPRETED
    device = "cuda"
