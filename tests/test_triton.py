"""The Triton kernel in Triton's interpreter: bit for bit the reference, and nothing else touched.

Triton decides at import whether it interprets, for the whole process. So pytest runs this file in a
child process with ``TRITON_INTERPRET=1``; setting it by hand runs the tests directly.
"""

from __future__ import annotations

import array
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from cases import DTYPES, SIZES
from torch import Tensor

from adamod_fused.reference import AdaMod

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")
tl = triton.language

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

*SMALL_SIZES, LARGE = SIZES
STEPS = 10

# Distinct (hyperparameters, step) in one launch, none of them the defaults.
HYPERPARAMETERS = [
    dict(zip(("lr", "betas", "beta3", "eps", "weight_decay", "variant"), values, strict=True))
    for values in [
        (3e-3, (0.9, 0.99), 0.999, 1e-6, 0.1, "paper"),
        (2e-2, (0.8, 0.999), 0.0, 1e-8, 0.0, "paper"),
        (1e-4, (0.95, 0.98), 0.9999, 1e-3, 1.5, "released"),
        (0.5, (0.0, 0.5), 0.9, 0.0, 1e-2, "released"),
    ]
]


class TestInChildProcess:
    __test__ = not INTERPRETED

    def test_interpreted(self):
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert child.returncode == 0, child.stdout


def float_bits(x: Tensor) -> Tensor:
    """The bits of ``x``, every NaN made the same one."""
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


GUARD = 2048  # elements on either side: more than a block, so that a stray one stays inside


class Guarded:
    """A tensor ``offset`` elements past a 64-byte boundary, between guard zones."""

    def __init__(self, values: Tensor, offset: int):
        self.numel = values.numel()
        storage = torch.full((self.numel + 2 * GUARD + 32,), 12345.0, dtype=values.dtype)
        to_boundary = -storage.data_ptr() % 64 // values.element_size()
        begin = to_boundary + GUARD + offset
        self.tensor = storage[begin : begin + self.numel]
        self.around = [storage[:begin], storage[begin + self.numel :]]
        self.tensor.copy_(values)

    def assert_equal(self, expected: Tensor, what: str):
        different = (float_bits(self.tensor) != float_bits(expected)).nonzero().flatten()
        assert not len(different), (
            f"{what}: {len(different)} of {self.numel} differ, first at {different[0]}: "
            f"{self.tensor[different[0]]} != {expected[different[0]]}"
        )
        assert all((zone == 12345.0).all() for zone in self.around), f"{what}: written outside"


def sample(numel: int, generator: torch.Generator) -> Tensor:
    """Values over the whole range that a squared gradient can have, subnormals and zeros too."""
    exponents = torch.randint(-46, 6, (numel,), generator=generator)
    values = torch.randn(numel, generator=generator) * 10.0**exponents
    return torch.where(torch.rand(numel, generator=generator) < 0.1, torch.zeros(()), values)


@dataclass
class Row:
    """One tensor of the table, and what the reference makes of it."""

    streams: list[Guarded]  # param, grad, states
    expected: list[Tensor]
    scalars: int


def make_row(numel, dtype, offsets, scalars, generator, num_states=3) -> Row:
    param, grad = (sample(numel, generator).to(dtype) for _ in range(2))
    states = [sample(numel, generator).abs() for _ in range(num_states)]
    values = [param, grad, *states]
    streams = [Guarded(v, offset) for v, offset in zip(values, offsets, strict=True)]
    return Row(streams, values, scalars)


def launch(rule: str, rows: list[Row], scalars: list[tuple[float, ...]]) -> None:
    """One step, through the bytes that the table's owner would hand over."""
    from adamod_fused.triton_kernels import engine

    words, num_chunks = array.array("q"), 0
    for row in rows:
        addresses = [stream.tensor.data_ptr() for stream in row.streams]
        numel = row.streams[0].numel
        words.extend(addresses + [0] * (5 - len(addresses)) + [numel, num_chunks, row.scalars])
        num_chunks += -(-numel // engine.CHUNK_SIZE)
    floats = array.array("f", itertools.chain.from_iterable(scalars))
    table = engine.upload(words, floats, len(scalars[0]), torch.device("cpu"))
    engine.step(rule, rows[0].streams[0].tensor.dtype, *table, num_chunks)


def rounded(scalars: AdaMod.Scalars) -> AdaMod.Scalars:
    return AdaMod.Scalars(*torch.tensor(scalars, dtype=torch.float32).tolist())


def update_expected(row: Row, scalars: AdaMod.Scalars) -> None:
    param, grad, *states = row.expected
    new_param, *new_states = AdaMod.update(scalars, param.float(), grad.float(), *states)
    row.expected = [new_param.to(param.dtype), grad, *new_states]


def check(rows: list[Row]) -> None:
    for number, row in enumerate(rows):
        names = ("param", "grad", *AdaMod.states)[: len(row.streams)]
        for name, stream, expected in zip(names, row.streams, row.expected, strict=True):
            stream.assert_equal(expected, f"row {number} of {stream.numel} elements, {name}")


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


class TestInterpreted:
    __test__ = INTERPRETED
    # Overflow and NaN are among the cases; the interpreter's numpy remarks on them.
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

    @pytest.fixture
    def generator(self):
        return torch.Generator().manual_seed(20191012)

    @pytest.fixture(autouse=True)
    def ieee_bfloat16(self, monkeypatch):
        """The interpreter truncates to bfloat16 and garbles its subnormals; GPUs do not.

        test_triton_aot.py sees to it that a GPU rounds to nearest even: ``cvt.rn.bf16``.
        """
        from triton.runtime import interpreter

        convert = interpreter._convert_float

        def convert_float(x, source, target, rounding_mode):
            if (source, target) == (tl.float32, tl.bfloat16):
                narrow = torch.from_numpy(x.copy()).to(torch.bfloat16)
                return narrow.view(torch.int16).numpy()
            if (source, target) == (tl.bfloat16, tl.float32):
                wide = torch.from_numpy(x.view("int16").copy()).view(torch.bfloat16).float()
                return wide.numpy()
            return convert(x, source, target, rounding_mode)

        monkeypatch.setattr(interpreter, "_convert_float", convert_float)

    @pytest.fixture(autouse=True)
    def promises(self, monkeypatch):
        """The alignments promised to the compiler, each of them checked: a GPU would fault."""
        from triton.runtime import interpreter

        promises = []

        def set_attr(handle, name, values):
            (address,) = handle.data.flatten()
            (divisor,) = values
            assert address % divisor == 0, f"{address:#x} is not a multiple of {divisor}"
            promises.append(address)

        monkeypatch.setattr(interpreter.TensorHandle, "set_attr", set_attr)
        return promises

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
        table = engine.upload(words, array.array("f", scalars), len(scalars), torch.device("cpu"))
        engine.step("adamod", torch.float32, *table, num_chunks=2)
        update_expected(row, scalars)
        check([row])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rule_of_one_state(self, dtype, monkeypatch, generator):
        """The engine serves a rule it has never seen."""
        from adamod_fused.triton_kernels import rules

        monkeypatch.setitem(rules.RULES, "momentum", rules.Rule(momentum, num_states=1))
        offsets = OFFSETS["congruent by 3"][dtype.itemsize][:3]
        rows = [make_row(n, dtype, offsets, 1, generator, num_states=1) for n in (0, 2, 1030, 4099)]
        launch("momentum", rows, [(0.5, 0.5), (0.9375, 0.25)])
        for row in rows:
            param, grad, velocity = row.expected
            velocity = 0.9375 * velocity + grad.float()
            param = (param.float() - 0.25 * velocity).to(dtype)
            row.expected = [param, grad, velocity]
        check(rows)


@triton.jit
def momentum(scalars, param, grad, velocity, state1, state2):
    velocity = tl.load(scalars + 0) * velocity + grad
    param = param - tl.load(scalars + 1) * velocity
    return param, velocity, state1, state2
