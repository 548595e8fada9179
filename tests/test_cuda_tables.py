"""The CUDA engine's tensor table without a GPU: by value or uploaded, used again, in a graph."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_batches import DTYPES, ROWS_BY_VALUE, SCALARS_BY_VALUE, Batch, run_steps, scalars_at

from adamod_fused import AdaMod, backends
from bench.cuda_clock import LONG_TABLE, MOST_UPLOADS


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
    optimizer = AdaMod(
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


def test_the_benchmark_knows_what_is_uploaded_and_when_that_waits(engine, runtime):
    """Its sets take turns in passes that must not wait for the device."""
    scalars = [scalars_at(1)]
    copies, waits = runtime.emulation_copies(), runtime.emulation_waits()
    Batch(engine, "float32", [1] * LONG_TABLE).enqueue(scalars)
    assert runtime.emulation_copies() == copies
    for _ in range(MOST_UPLOADS):
        Batch(engine, "float32", [1] * (LONG_TABLE + 1)).enqueue(scalars)
    assert runtime.emulation_copies() == copies + MOST_UPLOADS
    assert runtime.emulation_waits() == waits
    Batch(engine, "float32", [1] * (LONG_TABLE + 1)).enqueue(scalars)
    assert runtime.emulation_waits() == waits + 1
