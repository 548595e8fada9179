"""The CUDA engine's sum of squares, run on the host: the bits of the contract in csrc/engine/row.h.

What lies around a gradient, in the workspace and in the result is NaN before, so that a single
element too many, or one that was not written, is seen in the sum.
"""

from __future__ import annotations

import ctypes
from itertools import accumulate

import numpy as np
import pytest
import torch
from cuda_batches import DTYPES
from helpers import assert_same_bits

SEGMENT = 16384
LANES = 1024
EDGES = (0, 1, 2, 3, 4, 5, 15, 16, 17, 1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 8193)
EDGES = (*EDGES, 12289, 16383, 16384, 16385, 2 * SEGMENT - 1, 2 * SEGMENT, 3 * SEGMENT + 4099)

ROWS_BY_VALUE = (32764 - 16) // 24  # the kernel parameter holds 32,764 bytes, the count among it

on_each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def by_lanes(terms):
    """Lane i adds terms i, i + 1024, ...; then the upper half is added to the lower half."""
    lanes = np.zeros(LANES)
    for start in range(0, len(terms), LANES):
        some = terms[start : start + LANES]
        lanes[: len(some)] += some
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0]


def sum_squares(grads):
    """The oracle, and how many segments there are."""
    squares = [grad.double().flatten().numpy() ** 2 for grad in grads]
    partials = [
        by_lanes(square[start : start + SEGMENT])
        for square in squares
        for start in range(0, len(square), SEGMENT)
    ]
    return torch.tensor(by_lanes(np.array(partials)), dtype=torch.float64)


class Grads:
    """Gradients amid NaN, ``offset`` elements after a 64-byte boundary, and their table."""

    def __init__(self, engine, dtype, values, offset=0):
        self.engine, self.dtype = engine, dtype
        itemsize = DTYPES[dtype].itemsize
        arenas = [np.full(v.numel() * itemsize + 256, 0xFF, np.uint8) for v in values]
        self.tensors, addresses = [], []
        for arena, value in zip(arenas, values, strict=True):
            start = -arena.ctypes.data % 64 + 64 + offset * itemsize
            inside = arena[start : start + value.numel() * itemsize]
            self.tensors.append(torch.from_numpy(inside).view(DTYPES[dtype]).copy_(value))
            addresses.append(arena.ctypes.data + start)
        self.arenas = arenas
        sizes = [value.numel() for value in values]
        first = [0, *accumulate(-(-size // SEGMENT) for size in sizes)]
        self.num_segments = first.pop()
        self.rows = np.array([addresses, sizes, first], np.int64).T.copy()
        self.workspace = torch.full((self.num_segments + 2,), torch.nan, dtype=torch.float64)
        self.out = torch.full((3,), torch.nan, dtype=torch.float64)

    def enqueue(self, device=0, stream=0):
        """Hand the table to the engine, in an array that is gone right afterwards."""
        rows = self.rows.copy()
        self.engine.sum_squares(
            self.dtype,
            rows.ctypes.data,
            len(rows),
            self.num_segments,
            self.workspace[1:].data_ptr(),
            self.out[1:].data_ptr(),
            device,
            stream,
        )
        rows[:] = -1

    def check(self):
        what = f"of {len(self.tensors)} rows, {self.num_segments} segments"
        assert_same_bits(self.out[1], sum_squares(self.tensors), what)
        around = [self.workspace[[0, -1]], self.out[[0, 2]]]
        assert all(values.isnan().all() for values in around)


@pytest.fixture
def values():
    generator = torch.Generator().manual_seed(5)
    # Of one magnitude, so that most additions round, and another order shows.
    return lambda sizes, dtype: [
        torch.randn(size, generator=generator).to(DTYPES[dtype]) for size in sizes
    ]


def run(grads, runtime):
    grads.enqueue()
    runtime.emulation_synchronize()
    grads.check()


@on_each_dtype
@pytest.mark.parametrize("size", EDGES)
def test_each_size(engine, runtime, values, dtype, size):
    run(Grads(engine, dtype, values([size], dtype)), runtime)


@on_each_dtype
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 7])
def test_all_sizes_at_once_from_any_address(engine, runtime, values, dtype, offset):
    launches = runtime.emulation_launches()
    run(Grads(engine, dtype, values(EDGES, dtype), offset), runtime)
    assert runtime.emulation_launches() == launches + 2


@pytest.mark.parametrize(
    "add",
    [np.sum, sum, by_lanes, lambda x: by_lanes(x[::-1])],
    ids=["numpy", "one by one", "lanes", "backwards"],
)
def test_the_order_of_additions_shows(values, add):
    """Or the oracle would hold an engine to nothing."""
    grads = values([3 * SEGMENT + 4099] * 20, "float32")
    same = sum(sum_squares([grad]).item() == add(grad.double().numpy() ** 2) for grad in grads)
    assert same < len(grads)


def test_more_segments_than_lanes(engine, runtime, values):
    run(Grads(engine, "bfloat16", values([2] * (LANES + 300), "bfloat16")), runtime)


@pytest.mark.parametrize(("num_rows", "copies"), [(ROWS_BY_VALUE, 0), (ROWS_BY_VALUE + 1, 1)])
def test_tables_of_both_kinds(engine, runtime, values, num_rows, copies):
    sizes = [(7 * row) % 3 for row in range(num_rows)]  # every third is empty
    sizes[num_rows // 2] = SEGMENT + 1
    sizes[-3:] = 0, 5, 0
    before = runtime.emulation_copies()
    run(Grads(engine, "float32", values(sizes, "float32")), runtime)
    assert runtime.emulation_copies() - before == copies


@on_each_dtype
@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]], ids=str)
def test_nothing_sums_to_zero(engine, runtime, values, dtype, sizes):
    grads = Grads(engine, dtype, values(sizes, dtype))
    run(grads, runtime)
    assert grads.out[1] == 0
    assert not grads.out[1].signbit()


@on_each_dtype
@pytest.mark.parametrize("where", [0, 5, SEGMENT - 1, SEGMENT, 2 * SEGMENT + 3])
def test_infinities_and_nan_come_through(engine, runtime, values, dtype, where):
    sizes = [7, 2 * SEGMENT + 4, 9]
    for special, expected in [(torch.inf, torch.inf), (-torch.inf, torch.inf), (torch.nan,) * 2]:
        grads = Grads(engine, dtype, values(sizes, dtype))
        grads.tensors[1][where] = special
        run(grads, runtime)
        assert_same_bits(grads.out[1], torch.tensor(expected, dtype=torch.float64))


def test_the_whole_range_of_float32_is_exact(engine, runtime):
    """Squares of subnormals and of the largest number: neither 0 nor infinite."""
    tiny = torch.full((1,), 1e-45)
    huge = torch.full((SEGMENT,), torch.finfo(torch.float32).max)
    for tensor in (tiny, huge):
        grads = Grads(engine, "float32", [tensor])
        run(grads, runtime)
        assert 0 < grads.out[1] < torch.inf


@on_each_dtype
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_an_access_takes_four_elements(engine, runtime, values, dtype, offset):
    """Where the address allows it, and each element is read once."""
    for size in EDGES:
        grads = Grads(engine, dtype, values([size], dtype), offset)
        before = runtime.emulation_accesses()
        run(grads, runtime)
        in_fours = offset % 4 == 0
        accesses = size // 4 + size % 4 if in_fours else size
        accesses += grads.num_segments  # one by one: the workspace begins 8 bytes after a boundary
        assert runtime.emulation_accesses() - before == accesses, size


def test_a_captured_sum_replays(engine, runtime, values):
    """It reads the gradients of its time, and a table of its own."""
    stream = 7
    sizes = [0] * ROWS_BY_VALUE + [SEGMENT + 3]
    grads = Grads(engine, "float32", values(sizes, "float32"))
    other = Grads(engine, "float32", values([4] + [0] * ROWS_BY_VALUE, "float32"))
    runtime.emulation_begin_capture(ctypes.c_void_p(stream))
    grads.enqueue(stream=stream)
    runtime.emulation_end_capture()
    assert grads.out.isnan().all()
    for _ in range(2):
        for _ in range(9):  # takes every slot that is not the graph's
            other.enqueue()
        for tensor in grads.tensors:
            tensor.mul_(1 / 3)
        runtime.emulation_replay(ctypes.c_void_p(stream))
        runtime.emulation_synchronize()
        grads.check()
        other.check()


def test_another_device_is_selected_and_left_again(engine, runtime, values):
    grads = Grads(engine, "float32", values([5], "float32"))
    grads.enqueue(device=1)
    runtime.emulation_synchronize()
    grads.check()
    assert (runtime.emulation_launch_device(), runtime.emulation_current_device()) == (1, 0)


def test_cuda_errors_say_what_was_attempted(engine, runtime, values):
    grads = Grads(engine, "float32", values([5, SEGMENT + 1], "float32"))
    message = (
        r"cudaErrorInvalidDevice: .*, while selecting the device "
        r"\(sum of squares of float32, device 5, 2 rows, 3 segments\)"
    )
    with pytest.raises(RuntimeError, match=message):
        grads.enqueue(device=5)
    assert grads.out.isnan().all()


@pytest.mark.parametrize(
    ("dtype", "num_segments", "message"),
    [
        ("float64", 1, "serves float32, bfloat16 and float16, got float64"),
        ("float32", 2**31, "at most 2147483647 segments and rows, got 2147483648 and 1"),
    ],
)
def test_bad_arguments(engine, dtype, num_segments, message):
    with pytest.raises(ValueError, match=message):
        engine.sum_squares(dtype, 0, 1, num_segments, 0, 0, 0, 0)
