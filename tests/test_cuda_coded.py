"""The CUDA engine, run on the host: coded states and weights, bit for bit those of the oracle."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from coded_batches import (
    CODED_ROWS_BY_VALUE,
    EXPONENTS,
    FORMATS,
    STREAMS,
    CodedBatch,
)
from cuda_batches import HYPERPARAMETERS, SCALARS_BY_VALUE, random_values, run_steps, scalars_at
from helpers import assert_same_bits
from test_cuda_counts import GROUP

from adamod_fused.reference import AdaMod

# About a block, what a warp takes at once in either format, a chunk.
EDGES = (0, 1, 31, 32, 33, 255, 256, 257, 511, 512, 513)
SMALL = (33, 513, 1056)

every_format = pytest.mark.parametrize("formats", FORMATS, ids="-".join)
# One of each kind of kernel, where more would show nothing else.
some_formats = pytest.mark.parametrize(
    "formats",
    [
        ("float32", "8bit", "plain"),
        ("bfloat16", "16bit", "split"),
        ("bfloat16", "fp32", "stochastic"),
    ],
    ids="-".join,
)


@every_format
def test_all_sizes_in_one_launch(engine, runtime, formats):
    chunk = engine.chunk_size
    sizes = (*EDGES, chunk - 1, chunk, chunk + 1, 2 * chunk + 33)
    launches = runtime.emulation_launches()
    run_steps(CodedBatch(engine, formats, sizes), runtime, steps=4)
    assert runtime.emulation_launches() - launches == 4


@pytest.mark.parametrize("odd", STREAMS)
@some_formats
def test_misaligned_streams(engine, runtime, formats, odd):
    offsets = tuple(int(name == odd) for name in STREAMS)
    run_steps(CodedBatch(engine, formats, SMALL, offsets), runtime)


@every_format
def test_infinities_and_nans(engine, runtime, formats):
    """They come with gradients and parameters, and stay in states from step to step."""
    run_steps(CodedBatch(engine, formats, SMALL, values=random_values), runtime, steps=4)


@every_format
def test_every_code_under_every_exponent(engine, runtime, formats):
    """Of states: zeros, inf and NaN among them; of remainders too."""
    batch = CodedBatch(engine, formats, (2048, 2048), offsets=(0,) * 6)
    generator = torch.Generator().manual_seed(1)
    for row in range(2):
        for name, guarded in batch.tensors[row].items():
            if name in AdaMod.states and EXPONENTS not in batch.tensors[row]:
                continue
            if name == EXPONENTS:  # in the second row of normal size: what groups serve
                low, high = ((1, 255), (100, 140))[row]
                size = guarded.tensor.shape
                batch.set(row, name, torch.randint(low, high, size, generator=generator))
            elif name == "remainder" or name in AdaMod.states:
                bits = torch.randint(0, 2**16, guarded.tensor.shape, generator=generator)
                if row == 1 and name != "remainder":
                    bits &= 0x1F1F  # small codes: none of inf or NaN
                batch.set(row, name, bits.to(guarded.tensor.dtype))
    run_steps(batch, runtime, steps=2)


@every_format
def test_zeros_stay_zeros(engine, runtime, formats):
    """No gradient, no learning rate: blocks in which every state is zero."""
    batch = CodedBatch(
        engine, formats, SMALL, values=lambda n, dtype, _: torch.zeros(n, dtype=dtype)
    )
    for step in (1, 2):
        scalars = [scalars_at(step, lr=0.0)]
        batch.enqueue(scalars)
        batch.expect(scalars)
    runtime.emulation_synchronize()
    batch.check()
    for tensors in batch.expected:
        assert not any(tensors[name].any() for name in AdaMod.states)


@some_formats
def test_what_must_not_be_negative(engine, runtime, formats):
    """A learning rate below zero, which only a tensor on the device can be."""
    batch = CodedBatch(engine, formats, SMALL)
    for step in (1, 2, 3):
        scalars = [scalars_at(step, lr=-1e-3)]
        batch.enqueue(scalars)
        batch.expect(scalars)
        runtime.emulation_synchronize()
        batch.check()


@pytest.mark.parametrize("first", [1, 48, 2**32 - 512, 2**32 - 100, 2**32 + 7, 2**40 - 1024 + 5])
@some_formats
def test_indices_of_shards(engine, runtime, formats, first):
    """Shards begin anywhere in their tensor; the lower half of an index may overflow in one."""
    batch = CodedBatch(
        engine, formats, (1024, 545), firsts=[first, first + 1024], keys=[2**64 - 1, 2**63 + 5]
    )
    run_steps(batch, runtime)


def accesses_of_step(batch, runtime):
    before = runtime.emulation_accesses()
    run_steps(batch, runtime, steps=1)
    return runtime.emulation_accesses() - before


@every_format
def test_one_access_per_group_and_stream(engine, runtime, formats):
    batch = CodedBatch(engine, formats, [4096 + 3 * 32 + 5])
    coded = batch.num_bytes != 4
    group = 16 // min(batch.tensors[0]["param"].tensor.element_size(), batch.num_bytes)
    streams = 2 * len(batch.tensors[0]) - 1 - 2 * coded  # all but grad are written
    packs = 4096 // group + 3 * 32 + 5
    blocks = 4096 // 32 + 4
    readers = 4096 // group + 3 * 32 + 5  # each thread reads the exponents that it needs
    exponents = 3 * (readers + blocks) if coded else 0
    assert accesses_of_step(batch, runtime) == packs * streams + exponents


def test_one_infinity_leaves_other_warps_their_groups(engine, runtime):
    usual, unusual = (CodedBatch(engine, ("float32", "8bit", "plain"), [4096]) for _ in range(2))
    grad = unusual.expected[0]["grad"].clone()
    grad[700] = torch.inf
    unusual.values = lambda *_: grad
    more = accesses_of_step(unusual, runtime) - accesses_of_step(usual, runtime)
    one_by_one, stores_of_groups = 512 * (9 + 3), 32 * 4
    assert more == one_by_one - stores_of_groups


@every_format
@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_a_blocks_other_elements_do_not_notice(engine, runtime, formats, poison):
    """They are what they are where that element's gradient is zero."""
    batches = [CodedBatch(engine, formats, SMALL) for _ in range(2)]
    for step in range(1, 4):
        for batch, value in zip(batches, (0.0, poison), strict=True):
            batch.new_grads()
            for row in range(len(SMALL)):
                grad = batch.expected[row]["grad"].clone()
                grad[17] = value if step == 2 else 0.0
                batch.set(row, "grad", grad)
            batch.enqueue([scalars_at(step, lr=1e-3)])
            batch.expect([scalars_at(step, lr=1e-3)])
            runtime.emulation_synchronize()
            batch.check()
    for calm, poisoned in zip(*(batch.expected for batch in batches), strict=True):
        others = torch.arange(calm["param"].numel()) != 17
        assert not poisoned["param"][17].isfinite() or formats[0] == "float16"
        for name in set(calm) - {EXPONENTS}:
            assert_same_bits(poisoned[name][others], calm[name][others], name)


@every_format
@pytest.mark.parametrize("grad_scale", [2.0**-16, -0.3])
def test_gradients_are_scaled(engine, runtime, formats, grad_scale):
    batch = CodedBatch(engine, formats, SMALL)
    told = torch.tensor([grad_scale, 0.0])
    batch.enqueue([scalars_at(1)], control=told.data_ptr())
    batch.expect([scalars_at(1)], torch.tensor(grad_scale))
    runtime.emulation_synchronize()
    batch.check()


@every_format
@pytest.mark.parametrize("rows", [3, CODED_ROWS_BY_VALUE + 1])
def test_a_step_that_skips_reads_and_writes_nothing(engine, runtime, formats, rows):
    batch = CodedBatch(engine, formats, [5] * rows)
    told = torch.tensor([torch.nan, 1.0])
    accesses = runtime.emulation_accesses()
    batch.enqueue([scalars_at(1)], control=told.data_ptr())
    runtime.emulation_synchronize()
    assert runtime.emulation_accesses() == accesses
    batch.check()


@some_formats
@pytest.mark.parametrize(
    ("num_rows", "num_scalars", "copies"),
    [
        (CODED_ROWS_BY_VALUE, SCALARS_BY_VALUE, 0),
        (CODED_ROWS_BY_VALUE + 1, 1, 1),
        (40, SCALARS_BY_VALUE + 1, 1),
    ],
)
def test_tables_of_both_kinds(engine, runtime, formats, num_rows, num_scalars, copies):
    generator = torch.Generator().manual_seed(num_rows)
    sizes = torch.randint(0, 40, (num_rows,), generator=generator).tolist()
    sizes[num_rows // 2] = engine.chunk_size + 1
    scalars = [scalars_at(i + 1, lr=1e-3 * (i + 1)) for i in range(num_scalars)]
    scalar_of_row = [(7 * row + 3) % num_scalars for row in range(num_rows)]
    batch = CodedBatch(engine, formats, sizes, scalar_of_row=scalar_of_row)
    before = runtime.emulation_copies(), runtime.emulation_launches()
    batch.enqueue(scalars)
    batch.expect(scalars)
    runtime.emulation_synchronize()
    batch.check()
    done = runtime.emulation_copies() - before[0], runtime.emulation_launches() - before[1]
    assert done == (copies, 1)


@every_format
def test_steps_counted_on_the_device(engine, runtime, formats):
    """The count decides the random bits too."""
    sizes = (0, 545, 33, 1)
    batch = CodedBatch(engine, formats, sizes, scalar_of_row=list(range(len(sizes))))
    steps = torch.tensor([0.0, 6.0, 999.0, 2.0**20])
    h = HYPERPARAMETERS
    group = (h["lr"], *h["betas"], h["beta3"], h["eps"], h["weight_decay"], h["maximize"], 0.0)
    told = torch.tensor([1.0, 0.0])
    for skip in (0.0, 1.0, 0.0):
        told[1] = skip
        batch.new_grads()
        rows = batch.rows.copy()
        first = steps.data_ptr()
        counts = np.array([[first + 4 * row, 0] for row in range(len(sizes))], np.int64)
        groups = np.array([(group, (0,) * 8, 0)], GROUP)
        keywords, coded = batch.arguments()
        launches = runtime.emulation_launches()
        engine.step(
            "adamod", formats[0], rows.ctypes.data, len(rows), 0, 0, batch.num_chunks, 0, 0,
            told.data_ptr(), counts.ctypes.data, groups.ctypes.data, 1, **keywords,
        )  # fmt: skip
        assert runtime.emulation_launches() == launches + 2
        rows[:] = counts[:] = -1
        coded[:] = 0
        before = steps.tolist()
        runtime.emulation_synchronize()
        if not skip:
            batch.expect([scalars_at(int(step) + 1) for step in before])
        batch.check()
        assert steps.tolist() == [step + (not skip) for step in before]


def test_a_captured_step_replays(engine, runtime):
    stream = 7
    for rows in (4, CODED_ROWS_BY_VALUE + 1):
        batch = CodedBatch(engine, ("bfloat16", "8bit", "split"), [40] * rows)
        runtime.emulation_begin_capture(ctypes.c_void_p(stream))
        batch.enqueue([scalars_at(1)], stream=stream)
        runtime.emulation_end_capture()
        for _ in range(2):
            runtime.emulation_replay(ctypes.c_void_p(stream))
            batch.expect([scalars_at(1)])
            runtime.emulation_synchronize()
            batch.check()


def test_no_tuning_changes_a_result(tuned):
    engine, runtime = tuned
    sizes = (513, engine.chunk_size + 1, 2 * engine.chunk_size - 32)
    for formats in FORMATS:
        run_steps(CodedBatch(engine, formats, sizes), runtime, steps=2)


def test_a_chain_of_steps(engine, runtime):
    for formats in FORMATS:
        run_steps(CodedBatch(engine, formats, [256, 512]), runtime, steps=30)


@pytest.mark.parametrize(
    ("dtype", "keywords", "message"),
    [
        ("float32", {"state_format": "4bit"}, "state formats fp32, 16bit and 8bit, got 4bit"),
        ("float32", {"weight_format": "exact"}, "plain, split and stochastic, got exact"),
        ("float32", {"weight_format": "split"}, "format split is one of bfloat16.*, got float32"),
        (
            "float16",
            {"weight_format": "stochastic"},
            "is one of bfloat16.*, got float16",
        ),
        ("float64", {"state_format": "8bit"}, "serves float32, bfloat16 and float16, got float64"),
        (
            "float32",
            {"state_format": "8bit", "coded": 0},
            "need coded rows, got none",
        ),
    ],
)
def test_bad_formats(engine, dtype, keywords, message):
    with pytest.raises(ValueError, match=message):
        engine.step("adamod", dtype, 0, 1, 0, 1, 1, 0, 0, **{"coded": 16, **keywords})


def test_cuda_errors_name_the_formats(engine, runtime):
    batch = CodedBatch(engine, ("float32", "8bit", "plain"), [3])
    with pytest.raises(RuntimeError, match=r"\(adamod on float32, 8bit, plain, device 5, 1 rows"):
        batch.enqueue([scalars_at(1)], device=5)
