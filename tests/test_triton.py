"""The Triton step in the interpreter: bit for bit the reference, and nothing else touched."""

from __future__ import annotations

import array

import pytest
import torch
from cases import DTYPES, SIZES
from interpreted import INTERPRETED, InChildProcess, Interpreted
from triton_rows import (
    HYPERPARAMETERS,
    Row,
    check,
    launch,
    make_row,
    rounded,
    sample,
    update_expected,
    upload,
)

from adamod_fused.reference import AdaMod

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")
tl = triton.language

*SMALL_SIZES, LARGE = SIZES
STEPS = 10


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


def run(rows: list[Row], first_step: int, steps: int, generator: torch.Generator) -> None:
    """``steps`` steps of AdaMod in the kernel and in the reference, compared after each."""
    for step in range(first_step, first_step + steps):
        for row in rows:
            grad = sample(row.streams[1].numel, generator).to(row.expected[1].dtype)
            row.expected[1] = grad
            row.streams[1].tensor.copy_(grad)
        scalars = [
            rounded(AdaMod.prepare(step + 3 * i, maximize=i % 2 == 1, **hyperparameters))
            for i, hyperparameters in enumerate(HYPERPARAMETERS)
        ]
        launch("adamod", rows, scalars)
        for row in rows:
            update_expected(row, scalars[row.scalars])
        check(rows)


# Offsets in elements of (param, grad, state 0, 1, 2), by the width of the param. With a 2-byte
# param, states of 4 bytes reach a boundary together with it when theirs is its offset modulo 4.
OFFSETS = {
    "aligned": {2: (0, 0, 0, 0, 0), 4: (0, 0, 0, 0, 0)},
    "congruent by 1": {2: (1, 1, 1, 1, 1), 4: (1, 1, 1, 1, 1)},
    "congruent by 3": {2: (7, 15, 3, 7, 3), 4: (3, 7, 3, 7, 3)},
    "grad apart": {2: (0, 4, 0, 0, 0), 4: (0, 2, 0, 0, 0)},
    "states apart": {2: (1, 1, 0, 0, 0), 4: (1, 1, 0, 0, 0)},
    "one state apart": {2: (0, 0, 0, 0, 1), 4: (0, 0, 0, 0, 1)},
}


class TestInterpreted(Interpreted):
    __test__ = INTERPRETED

    @pytest.fixture
    def generator(self):
        return torch.Generator().manual_seed(20191012)

    @pytest.mark.parametrize("offsets", OFFSETS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_size_in_one_launch(self, dtype, offsets, generator):
        rows = [
            make_row(
                numel, dtype, OFFSETS[offsets][dtype.itemsize], i % len(HYPERPARAMETERS), generator
            )
            for i, numel in enumerate(SMALL_SIZES)
        ]
        run(rows, 1, STEPS if offsets == "congruent by 3" else 2, generator)

    @pytest.mark.parametrize("offsets", ["aligned", "congruent by 3", "grad apart"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_many_chunks(self, dtype, offsets, generator):
        rows = [make_row(LARGE, dtype, OFFSETS[offsets][dtype.itemsize], 2, generator)]
        run(rows, 7, 1, generator)

    @pytest.mark.parametrize("offsets", OFFSETS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_only_head_and_tail_are_masked(self, dtype, offsets, generator, promises):
        from adamod_fused.triton_kernels import engine

        offsets_here = OFFSETS[offsets][dtype.itemsize]
        numel = 2 * engine.CHUNK_SIZE + engine.BLOCK_SIZE + 17
        run([make_row(numel, dtype, offsets_here, 0, generator)], 1, 1, generator)
        head = -offsets_here[0] % (16 // dtype.itemsize)
        blocks = 0 if "apart" in offsets else (numel - head) // engine.BLOCK_SIZE
        assert len(promises) == len(offsets_here) * blocks

    @pytest.mark.parametrize("distance", [-1, 0, 1])
    def test_chunk_boundary(self, distance, generator):
        """A head moves the chunks' boundaries; the last chunk may then own nothing."""
        from adamod_fused.triton_kernels import engine

        rows = [
            make_row(
                chunks * engine.CHUNK_SIZE + distance, torch.float32, [offset] * 5, 0, generator
            )
            for chunks in (1, 2)
            for offset in range(4)
        ]
        run(rows, 1, 1, generator)

    @pytest.mark.parametrize(
        "sizes",
        [[5], [0, 5], [5, 0], [0, 0, 5, 0, 0, 0, 4097, 0, 0], [0, 4097, 5000, 0, 3, 3, 3, 3]],
        ids=str,
    )
    def test_empty_rows(self, sizes, generator):
        rows = [
            make_row(numel, torch.float32, [0] * 5, i % len(HYPERPARAMETERS), generator)
            for i, numel in enumerate(sizes)
        ]
        run(rows, 1, 2, generator)

    def test_many_rows(self, generator):
        rows = [
            make_row(1 + i % 7, torch.float32, [i % 4] * 5, i % len(HYPERPARAMETERS), generator)
            for i in range(67)
        ]
        run(rows, 1, 1, generator)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, 1e-45, -0.0])
    def test_extreme_gradients(self, value, generator):
        rows = [make_row(1030, torch.float32, [0] * 5, i, generator) for i in range(4)]
        for row in rows:
            row.expected[1] = torch.full_like(row.expected[1], value)
            row.streams[1].tensor.fill_(value)
            for exp_avg_lr in (row.expected[4], row.streams[4].tensor):
                exp_avg_lr[::3] = torch.nan  # min(eta, NaN) is eta, as the rule writes it
        scalars = [
            rounded(AdaMod.prepare(4, maximize=True, **hyperparameters))
            for hyperparameters in HYPERPARAMETERS
        ]
        launch("adamod", rows, scalars)
        for row in rows:
            update_expected(row, scalars[row.scalars])
        check(rows)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, 1e-45, -0.0])
    def test_extreme_params(self, value, generator):
        """With weight decay and without."""
        rows = [make_row(1030, torch.float32, [0] * 5, i, generator) for i in range(4)]
        for row in rows:
            row.expected[0] = torch.full_like(row.expected[0], value)
            row.streams[0].tensor.fill_(value)
        run(rows, 1, 2, generator)
        assert rows[1].expected[0].isnan().all() == (value != value)

    def test_by_way_of_float64(self, monkeypatch, generator):
        """Triton before 3.6 takes roots and quotients in float64: the same bits."""
        from adamod_fused.triton_kernels import ieee

        monkeypatch.setattr(ieee, "FLUSHES", tl.constexpr(not ieee.FLUSHES.value))
        rows = [make_row(4097, torch.float32, [0] * 5, i, generator) for i in range(4)]
        run(rows, 1, 3, generator)

    def test_more_than_2_to_the_31_elements(self, generator):
        """The last chunks of a tensor whose first 2^31 elements are not there."""
        from adamod_fused.triton_kernels import engine

        missing = 2**31 // engine.CHUNK_SIZE
        row = make_row(engine.CHUNK_SIZE + 5, torch.float32, [0] * 5, 0, generator)
        addresses = [stream.tensor.data_ptr() - 4 * 2**31 for stream in row.streams]
        words = array.array("q", [*addresses, 2**31 + row.streams[0].numel, -missing, 0])
        scalars = rounded(AdaMod.prepare(2, maximize=False, **HYPERPARAMETERS[0]))
        table = upload(words, [scalars], torch.device("cpu"))
        engine.step("adamod", torch.float32, *table, num_chunks=2)
        update_expected(row, scalars)
        check([row])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rule_of_one_state(self, dtype, monkeypatch, generator):
        """The engine serves a rule it has never seen."""
        from adamod_fused.triton_kernels import rules

        monkeypatch.setitem(rules.RULES, "momentum", rules.Rule(momentum, None, None, num_states=1))
        offsets = OFFSETS["congruent by 3"][dtype.itemsize][:3]
        rows = [make_row(n, dtype, offsets, 1, generator, num_states=1) for n in (0, 2, 1030, 4099)]
        launch("momentum", rows, [(0.5, 0.5, 0.0, 1.0), (0.9375, 0.25, 0.03125, 1.0)])
        for row in rows:
            param, grad, velocity = row.expected
            velocity = 0.9375 * velocity + grad.float()
            param = param.float()
            param = (param - (0.03125 * param + 0.25 * velocity)).to(dtype)
            row.expected = [param, grad, velocity]
        check(rows)


@triton.jit
def momentum(scalars, grad, velocity, state1, state2):
    velocity = tl.load(scalars + 0) * velocity + grad
    return tl.load(scalars + 1) * velocity, velocity, state1, state2
