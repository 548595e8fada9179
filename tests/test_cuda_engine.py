"""The CUDA engine without a GPU: csrc/engine/cuda.cu, compiled by g++ and run on the host.

What a GPU would do with memory is checked here: chunks, heads, tails, alignment, bit for bit
against the reference, between guard zones; what becomes of its table in test_cuda_tables.py.
emulation/cuda_runtime.h says what the stand-in runtime does; what only a GPU can show is in the
tests marked gpu.
"""

from __future__ import annotations

import re

import pytest
from cases import SIZES
from cuda_batches import DTYPES, STREAMS, Batch, run_steps, scalars_at

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tuning_changes_a_result(tuned, dtype):
    engine, runtime = tuned
    for offsets in (CONGRUENT[0], CONGRUENT[3], INCONGRUENT[4]):
        batch = Batch(engine, dtype, edge_sizes(engine), offsets)
        launches = runtime.emulation_launches()
        run_steps(batch, runtime)
        assert runtime.emulation_launches() - launches == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_weight_decay(engine, runtime, dtype):
    """Infinite parameters stay so, and zeros keep their sign."""
    batch = Batch(engine, dtype, [7000])
    scalars = [scalars_at(1, weight_decay=0.0)]
    batch.enqueue(scalars)
    batch.expect(scalars)
    runtime.emulation_synchronize()
    batch.check()


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
