"""The CUDA engine without a GPU: csrc/engine/cuda.cu, compiled by g++ and run on the host.

What a GPU would do with memory is checked here: chunks, heads, tails, alignment, the table in both
its forms, bit for bit against the reference, between guard zones. emulation/cuda_runtime.h says
what the stand-in runtime does; what only a GPU can show is in the tests marked gpu.
"""

from __future__ import annotations

import ctypes
import re
from itertools import accumulate
from typing import ClassVar

import numpy as np
import pytest
import torch
from cases import SIZES
from emulation.build import build_emulated_cuda
from helpers import assert_same_bits

from adamod_fused import AdaMod as AdaModOptimizer
from adamod_fused import backends
from adamod_fused.reference import AdaMod
from bench.extension import import_extension

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STREAMS = ("param", "grad", *AdaMod.states)

# Where each stream starts, in elements after a 64-byte boundary. Congruent: all streams reach a
# 16-byte boundary at the same element, in every dtype.
CONGRUENT = [
    (0, 0, 0, 0, 0),
    (1, 1, 1, 1, 1),
    (3, 3, 3, 3, 3),
    (7, 15, 3, 7, 11),
    (2, 10, 6, 2, 14),
]
INCONGRUENT = [tuple(int(i == odd) for i in range(5)) for odd in range(5)]

# The kernel parameter holds 32,764 bytes: 32 rows of scalars, then rows of 64 bytes and the count.
ROWS_BY_VALUE = (32764 - 8 - 32 * 4 * len(AdaMod.Scalars._fields)) // 64
SCALARS_BY_VALUE = 32

GUARD_BYTES = 256
GUARD = 0xA5


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module ``_cuda`` and, as ``runtime``, the stand-in runtime inside it."""
    path = build_emulated_cuda(tmp_path_factory.mktemp("emulated_cuda"))
    return import_extension(path), ctypes.CDLL(str(path))


# Every member of csrc/engine/cuda_tuning.h, changed in one of these.
TUNINGS = {
    "small": """t.block_threads = 128; t.chunk_size = 2048; t.groups = 2; t.persistent = true;
        t.streaming_loads = true; t.max_table_bytes = 1664""",
    "large": """t.block_threads = 512; t.chunk_size = 16384; t.groups = 4; t.min_blocks = 1;
        t.group_by_widest = true; t.streaming_stores = true""",
}


@pytest.fixture(scope="session", params=TUNINGS)
def tuned(request, tmp_path_factory):
    """The same, each with other constants in csrc/engine/cuda_tuning.h."""
    tuning = " ".join(TUNINGS[request.param].split())
    path = build_emulated_cuda(tmp_path_factory.mktemp("tuned_cuda"), tuning=tuning)
    return import_extension(path), ctypes.CDLL(str(path))


@pytest.fixture
def engine(emulated):
    return emulated[0]


@pytest.fixture
def runtime(emulated):
    runtime = emulated[1]
    runtime.emulation_set_lazy(True)
    yield runtime
    runtime.emulation_end_capture()
    runtime.emulation_synchronize()
    runtime.emulation_set_lazy(False)
    Batch.enqueued.clear()
    runtime.emulation_set_machine(13000, 2, 90)


def scalars_at(step, **changes):
    """Scalars of one step as the kernels see them, rounded to float32; nothing at its default."""
    hyperparameters = {
        "lr": 3e-3,
        "betas": (0.8, 0.99),
        "beta3": 0.97,
        "eps": 1e-6,
        "weight_decay": 0.1,
        "variant": "paper",
        "maximize": True,
    }
    row = AdaMod.prepare(step, **(hyperparameters | changes))
    return AdaMod.Scalars(*np.array(row, np.float32).tolist())


def random_values(numel, dtype, generator):
    """Values of all magnitudes, with what is rare in float: zeros, subnormals, inf, NaN."""
    exponent = torch.rand(numel, generator=generator) * 24 - 18
    values = torch.randn(numel, generator=generator) * 10**exponent
    special = torch.tensor([0.0, -0.0, 1e-41, -1e-7, 3e38, torch.inf, -torch.inf, torch.nan])
    chosen = special[torch.randint(len(special), (numel,), generator=generator)]
    rare = torch.rand(numel, generator=generator) < 0.01
    return torch.where(rare, chosen, values).to(dtype)


class Guarded:
    """A tensor between guard zones, ``offset`` elements after a 64-byte boundary."""

    def __init__(self, values, offset):
        size = values.numel() * values.element_size()
        self.arena = np.full(size + 2 * GUARD_BYTES + 64 + 64, GUARD, np.uint8)
        start = -self.arena.ctypes.data % 64 + GUARD_BYTES + offset * values.element_size()
        self.inside = slice(start, start + size)
        self.address = self.arena.ctypes.data + start
        self.tensor = torch.from_numpy(self.arena[self.inside]).view(values.dtype)
        self.tensor.copy_(values)

    def guards_intact(self):
        outside = (self.arena[: self.inside.start], self.arena[self.inside.stop :])
        return all((zone == GUARD).all() for zone in outside)


class Batch:
    """Tensors with their table, and beside them the values that the reference says."""

    enqueued: ClassVar[list[Batch]] = []  # their memory has to stay until the queue is empty

    def __init__(self, engine, dtype, sizes, offsets=(0,) * 5, scalar_of_row=None, seed=0):
        self.engine, self.dtype, self.offsets = engine, dtype, offsets
        self.scalar_of_row = scalar_of_row or [0] * len(sizes)
        self.generator = torch.Generator().manual_seed(seed)
        dtypes = (DTYPES[dtype], DTYPES[dtype], *(torch.float32,) * len(AdaMod.states))
        self.tensors = []
        for numel in sizes:
            values = [random_values(numel, d, self.generator) for d in dtypes[:2]]
            values += [torch.zeros(numel) for _ in AdaMod.states]
            self.tensors.append([Guarded(*pair) for pair in zip(values, offsets, strict=True)])
        self.expected = [[g.tensor.clone() for g in guarded] for guarded in self.tensors]

        chunks = [-(-numel // engine.chunk_size) for numel in sizes]
        first = [0, *accumulate(chunks)]
        self.num_chunks = first.pop()
        rows = [
            [*(g.address for g in guarded), *rest]
            for guarded, *rest in zip(self.tensors, sizes, first, self.scalar_of_row, strict=True)
        ]
        self.rows = np.array(rows, np.int64)

    def new_grads(self):
        for guarded, expected in zip(self.tensors, self.expected, strict=True):
            grad = guarded[1].tensor
            grad.copy_(random_values(grad.numel(), grad.dtype, self.generator))
            expected[1] = grad.clone()

    def enqueue(self, scalars, device=0, stream=0):
        """Hand the batch to the engine, in arrays that are gone right afterwards."""
        self.enqueued.append(self)
        rows = self.rows.copy()
        rows_of_scalars = np.array(scalars, np.float32)
        counts = (len(rows_of_scalars), self.num_chunks, device, stream)
        addresses = (rows.ctypes.data, len(rows), rows_of_scalars.ctypes.data)
        self.engine.step("adamod", self.dtype, *addresses, *counts)
        rows[:] = rows_of_scalars[:] = -1

    def expect(self, scalars):
        """Move the expected values on by one step."""
        for expected, index in zip(self.expected, self.scalar_of_row, strict=True):
            new = AdaMod.update(scalars[index], *(t.float() for t in expected))
            expected[0] = new[0].to(expected[0].dtype)
            expected[2:] = new[1:]

    def check(self):
        for row, (guarded, expected) in enumerate(zip(self.tensors, self.expected, strict=True)):
            for name, g, e in zip(STREAMS, guarded, expected, strict=True):
                where = f"{name} of row {row}, {e.numel()} elements, offsets {self.offsets}"
                assert_same_bits(g.tensor, e, where)
                assert g.guards_intact(), f"a guard zone of {where}"


def run_steps(batch, runtime, steps=3):
    for step in range(1, steps + 1):
        batch.new_grads()
        scalars = [scalars_at(step)]
        batch.enqueue(scalars)
        batch.expect(scalars)
        runtime.emulation_synchronize()
        batch.check()


def edge_sizes(engine):
    chunk = engine.chunk_size
    return (*SIZES, *(chunk + d for d in (-1, 0, 1, 3, 9)), *(2 * chunk + d for d in (-5, 0, 2)))


@pytest.mark.parametrize("offsets", CONGRUENT + INCONGRUENT, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_sizes_in_one_launch(engine, runtime, dtype, offsets):
    batch = Batch(engine, dtype, edge_sizes(engine), offsets)
    launches = runtime.emulation_launches()
    run_steps(batch, runtime)
    assert runtime.emulation_launches() - launches == 3


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("tensors", "groups"),
    [(1, 1), (148, 3), (ROWS_BY_VALUE, 1), (ROWS_BY_VALUE + 1, 1), (40, SCALARS_BY_VALUE + 1)],
)
def test_one_launch_a_step(engine, runtime, emulated_cuda, monkeypatch, tensors, groups, dtype):
    """Whatever the list and the param groups, with tables by value and by address."""
    backend = type(emulated_cuda)(engine)
    monkeypatch.setitem(backends._BACKENDS, "cuda", backend)
    params = [torch.nn.Parameter(torch.ones(1 + i % 7, dtype=dtype)) for i in range(tensors)]
    optimizer = AdaModOptimizer(
        [{"params": params[i::groups], "lr": 1e-3 * (i + 1)} for i in range(groups)],
        backend="cuda",
    )
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        launches = runtime.emulation_launches()
        optimizer.step()
        assert runtime.emulation_launches() - launches == 1
        runtime.emulation_synchronize()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tuning_changes_a_result(tuned, dtype):
    engine, runtime = tuned
    for offsets in (CONGRUENT[0], CONGRUENT[3], INCONGRUENT[4]):
        batch = Batch(engine, dtype, edge_sizes(engine), offsets)
        launches = runtime.emulation_launches()
        run_steps(batch, runtime)
        assert runtime.emulation_launches() - launches == 3


@pytest.mark.parametrize("offsets", CONGRUENT + INCONGRUENT, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_access_per_group_and_stream(engine, runtime, dtype, offsets):
    itemsize = DTYPES[dtype].itemsize
    group = 16 // itemsize
    accesses_per_group = 2 * len(STREAMS) - 1  # all are read, all but grad are written
    for numel in edge_sizes(engine):
        batch = Batch(engine, dtype, [numel], offsets)
        accesses = runtime.emulation_accesses()
        run_steps(batch, runtime, steps=1)
        if offsets in CONGRUENT:
            head = min(-offsets[0] % group, numel)
            packs = head + (numel - head) // group + (numel - head) % group
        else:
            packs = numel
        accesses = runtime.emulation_accesses() - accesses
        assert accesses == packs * accesses_per_group, numel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [[0, 0, 7], [7, 0, 0], [0, 5, 0, 0, 20000, 0, 0, 0, 3, 0], [1], [20000], [5, 20000, 5]],
    ids=str,
)
def test_empty_rows_own_no_chunk(engine, runtime, dtype, sizes):
    run_steps(Batch(engine, dtype, sizes), runtime)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
def test_nothing_to_do_launches_nothing(engine, runtime, sizes):
    launches = runtime.emulation_launches()
    Batch(engine, "float32", sizes).enqueue([scalars_at(1)])
    assert runtime.emulation_launches() == launches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_scalars", "copies"),
    [
        (ROWS_BY_VALUE, SCALARS_BY_VALUE, 0),
        (ROWS_BY_VALUE + 1, 1, 1),
        (40, SCALARS_BY_VALUE + 1, 1),
        (1200, 70, 1),
    ],
)
def test_tables_of_both_kinds(engine, runtime, dtype, num_rows, num_scalars, copies):
    generator = torch.Generator().manual_seed(num_rows)
    sizes = torch.randint(0, 30, (num_rows,), generator=generator).tolist()
    sizes[num_rows // 2] = 2 * engine.chunk_size + 1
    scalars = [
        scalars_at(i + 1, lr=1e-3 * (i + 1), variant=("paper", "released")[i % 2])
        for i in range(num_scalars)
    ]
    scalar_of_row = [(7 * row + 3) % num_scalars for row in range(num_rows)]
    batch = Batch(engine, dtype, sizes, (1, 1, 1, 1, 1), scalar_of_row)
    before = runtime.emulation_copies(), runtime.emulation_launches()
    batch.enqueue(scalars)
    batch.expect(scalars)
    runtime.emulation_synchronize()
    batch.check()
    assert (runtime.emulation_copies() - before[0], runtime.emulation_launches() - before[1]) == (
        copies,
        1,
    )


def large_batch(engine, seed):
    """A batch whose table does not fit in the kernel parameter."""
    return Batch(engine, "float32", [3] * (ROWS_BY_VALUE + 1 + seed), seed=seed)


def test_steady_state_neither_allocates_nor_waits(engine, runtime):
    batch = large_batch(engine, 0)
    run_steps(batch, runtime, steps=9)
    before = runtime.emulation_allocations(), runtime.emulation_waits()
    run_steps(batch, runtime, steps=10)
    assert (runtime.emulation_allocations(), runtime.emulation_waits()) == before


def test_a_table_is_not_overwritten_before_it_was_read(engine, runtime):
    batches = [large_batch(engine, seed) for seed in range(20)]
    scalars = [scalars_at(1)]
    waits = runtime.emulation_waits()
    for stream, batch in enumerate(batches):
        batch.enqueue(scalars, stream=stream)
        batch.expect(scalars)
    assert runtime.emulation_waits() > waits, "20 launches are more than the ring holds"
    runtime.emulation_synchronize()
    for batch in batches:
        batch.check()


def test_a_growing_table(engine, runtime):
    allocations = runtime.emulation_allocations()
    for num_rows in (600, 2500, 600, 1200):
        run_steps(Batch(engine, "float32", [2] * num_rows), runtime, steps=1)
    assert runtime.emulation_allocations() > allocations


@pytest.mark.parametrize("num_rows", [5, 1200])
def test_a_captured_step_replays(engine, runtime, num_rows):
    stream = 7
    batch = Batch(engine, "float32", [3] * num_rows)
    scalars = [scalars_at(1)]

    runtime.emulation_begin_capture(ctypes.c_void_p(stream))
    batch.enqueue(scalars, stream=stream)
    others = [large_batch(engine, seed) for seed in range(10)]
    for other in others[:5]:  # on another stream, while the capture goes on
        other.enqueue(scalars)
        other.expect(scalars)
    runtime.emulation_end_capture()
    assert not runtime.emulation_relaxed(), "the thread's capture mode is as it was"
    runtime.emulation_synchronize()
    batch.check()  # nothing has run yet

    for _ in range(2):
        for other in others:  # these may take any slot, but not the graph's
            other.enqueue(scalars)
            other.expect(scalars)
        runtime.emulation_replay(ctypes.c_void_p(stream))
        batch.expect(scalars)
        runtime.emulation_synchronize()
    for each in (batch, *others):
        each.check()


@pytest.mark.parametrize("num_rows", [5, 1200])
def test_another_device_is_selected_and_left_again(engine, runtime, num_rows):
    batch = Batch(engine, "float32", [3] * num_rows)
    scalars = [scalars_at(1)]
    batch.enqueue(scalars, device=1)
    batch.expect(scalars)
    runtime.emulation_synchronize()
    batch.check()
    assert runtime.emulation_launch_device() == 1
    assert runtime.emulation_current_device() == 0


def test_cuda_errors_say_what_was_attempted(engine, runtime):
    batch = Batch(engine, "float32", [3, 4])
    with pytest.raises(
        RuntimeError,
        match=r"cudaErrorInvalidDevice: .*, while selecting the device "
        r"\(adamod on float32, device 5, 2 rows, 2 chunks\)",
    ):
        batch.enqueue([scalars_at(1)], device=5)
    batch.check()


@pytest.mark.parametrize(
    ("rule", "dtype", "num_chunks", "message"),
    [
        ("adam", "float32", 1, "the CUDA engine has the rules adamod, got adam"),
        ("adamod", "float64", 1, "serves float32, bfloat16 and float16, got float64"),
        ("adamod", "float32", 2**31, "at most 2147483647 chunks and rows, got 2147483648 and 1"),
    ],
)
def test_bad_arguments(engine, rule, dtype, num_chunks, message):
    with pytest.raises(ValueError, match=message):
        engine.step(rule, dtype, 0, 1, 0, 1, num_chunks, 0, 0)


@pytest.mark.parametrize(
    ("driver", "devices", "capability", "device", "reason"),
    [
        (13000, 2, 90, 1, None),
        (13000, 2, 86, 0, None),  # sm_80 machine code runs on it
        (13000, 2, 120, 0, None),  # through the PTX of sm_90
        (13000, 2, 75, 0, r"no machine code for device 0, an sm_75: build with 75 in"),
        (0, 0, 90, 0, "no NVIDIA driver found"),
        (12020, 0, 90, 0, r"cudaErrorNoDevice: .* \(the driver serves CUDA 12.2, this build needs"),
        (13000, 2, 90, 2, "there is no device 2, the driver shows 2"),
        (13000, 2, 90, -1, "there is no device -1"),
    ],
)
def test_why_unusable(engine, runtime, driver, devices, capability, device, reason):
    runtime.emulation_set_machine(driver, devices, capability)
    answer = engine.why_unusable(device)
    if reason is None:
        assert answer is None
    else:
        assert re.search(reason, answer)


def test_attributes(engine):
    assert engine.chunk_size % 16 == 0
    assert engine.cudart_version >= 12010
    assert engine.architectures() == [80, 90]
