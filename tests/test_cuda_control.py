"""The CUDA engine, run on the host: a step told on the device to scale its gradients or to skip.

Gradients of all magnitudes, infinities and NaN among them, as a loss scaled too high leaves them.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_batches import DTYPES, ROWS_BY_VALUE, Batch, scalars_at
from emulation.build import build_emulated_cuda

from bench.extension import import_extension

SIZES = (0, 1, 7, 4096, 8193, 20000)
SKIP = 1.0

# Rows of the table: few, which go by value, and more than can.
on_each_table = pytest.mark.parametrize("sizes", [SIZES, (3,) * (ROWS_BY_VALUE + 1)], ids=len)
on_each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def control(grad_scale, skip=0.0):
    return torch.tensor([grad_scale, skip])


@on_each_dtype
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("grad_scale", [1.0, 2.0**-16, 0.3, 0.0, -3e-5])
def test_gradients_are_scaled_in_float32(engine, runtime, dtype, offset, grad_scale):
    batch = Batch(engine, dtype, SIZES, (offset,) * 5)
    told = control(grad_scale)
    for step in range(1, 4):
        batch.new_grads()
        scalars = [scalars_at(step)]
        batch.enqueue(scalars, control=told.data_ptr())
        batch.expect(scalars, torch.tensor(grad_scale))
        runtime.emulation_synchronize()
        batch.check()


@on_each_table
@on_each_dtype
@pytest.mark.parametrize("skip", [SKIP, 1e-40, torch.nan])
def test_a_step_that_skips_reads_and_writes_nothing(engine, runtime, sizes, dtype, skip):
    batch = Batch(engine, dtype, sizes)
    told = control(torch.nan, skip)
    accesses = runtime.emulation_accesses()
    batch.enqueue([scalars_at(1)], control=told.data_ptr())
    runtime.emulation_synchronize()
    assert runtime.emulation_accesses() == accesses
    batch.check()


def test_a_negative_zero_does_not_skip(engine, runtime):
    batch = Batch(engine, "float32", SIZES)
    told = control(1.0, -0.0)
    batch.enqueue([scalars_at(1)], control=told.data_ptr())
    batch.expect([scalars_at(1)])
    runtime.emulation_synchronize()
    batch.check()


@on_each_table
def test_what_is_told_is_read_when_the_step_runs(engine, runtime, sizes):
    """By then, work queued before it has found the infinities and computed the norm."""
    batch = Batch(engine, "float32", sizes)
    told = control(7.0, SKIP)
    batch.enqueue([scalars_at(1)], control=told.data_ptr())
    told.copy_(control(0.5))
    batch.expect([scalars_at(1)], 0.5)
    runtime.emulation_synchronize()
    batch.check()


@on_each_table
def test_a_replay_reads_it_again(engine, runtime, sizes):
    stream = 7
    batch = Batch(engine, "float32", sizes)
    scalars = [scalars_at(1)]
    told = control(1.0)
    runtime.emulation_begin_capture(ctypes.c_void_p(stream))
    batch.enqueue(scalars, stream=stream, control=told.data_ptr())
    runtime.emulation_end_capture()
    for grad_scale, skip in [(0.5, 0.0), (0.25, SKIP), (2.0, 0.0)]:
        told.copy_(control(grad_scale, skip))
        batch.new_grads()
        runtime.emulation_replay(ctypes.c_void_p(stream))
        if not skip:
            batch.expect(scalars, grad_scale)
        runtime.emulation_synchronize()
        batch.check()


def test_a_persistent_grid_is_told_too(tmp_path):
    path = build_emulated_cuda(tmp_path, tuning="t.persistent = true")
    engine = import_extension(path)
    batch = Batch(engine, "bfloat16", SIZES)
    scalars = [scalars_at(1)]
    for grad_scale, skip in [(0.5, 0.0), (0.25, SKIP)]:
        told = control(grad_scale, skip)
        batch.enqueue(scalars, control=told.data_ptr())
        if not skip:
            batch.expect(scalars, grad_scale)
        batch.check()
