"""What a real GPU makes of control, of counts and scalars of its own, and of the sum of squares.

The engine is called as in test_cuda_control.py, test_cuda_counts.py and test_cuda_norm.py, which
say what should come of it, with addresses of the GPU's memory.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_batches import DTYPES, STREAMS, scalars_at
from helpers import assert_same_bits
from test_cuda_counts import GROUPS, STARTS, Counted
from test_cuda_norm import EDGES, ROWS_BY_VALUE, SEGMENT, sum_squares
from twins import GPU

from adamod_fused.backends import extension

pytestmark = pytest.mark.gpu

SIZES = (0, 5, 1, 8193, 0, 300, 70_001, 0)


class OnGpu(Counted):
    """The batch on the GPU: copies of the tensors there, beside the values expected."""

    def __init__(self, dtype, sizes=SIZES, starts=STARTS, seed=0):
        super().__init__(extension.cuda, dtype, sizes, GROUPS, starts, seed)
        self.steps = self.steps.to(GPU)
        self.on_gpu = [[guarded.tensor.to(GPU) for guarded in row] for row in self.tensors]
        self.rows[:, : len(STREAMS)] = [[t.data_ptr() for t in row] for row in self.on_gpu]

    def put(self, group, name, value, dtype):
        self.tensors_of_groups.setdefault((group, name), torch.empty((), dtype=dtype, device=GPU))
        super().put(group, name, value, dtype)

    def new_grads(self):
        super().new_grads()
        for row, guarded in zip(self.on_gpu, self.tensors, strict=True):
            row[1].copy_(guarded[1].tensor)

    def step(self, control=0):
        self.enqueue_counted(torch.cuda.current_stream().cuda_stream, control)

    def check(self):
        torch.cuda.synchronize()
        self.enqueued.clear()
        for i, (row, expected) in enumerate(zip(self.on_gpu, self.expected, strict=True)):
            for name, got, wanted in zip(STREAMS, row, expected, strict=True):
                assert_same_bits(got, wanted, f"{name} of row {i}")
        assert self.steps.tolist() == self.expected_steps


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_prepared_on_the_gpu(dtype):
    batch = OnGpu(dtype)
    for step in range(4):
        batch.put(1, "lr", 1e-3 * (step + 1), torch.float32)
        batch.put(2, "beta2", 0.9 + 0.02 * step, torch.float64)
        batch.new_grads()
        batch.step()
        batch.expect_counted()
        batch.check()


def test_many_rows_and_counts():
    sizes = [(i * 7) % 50 for i in range(3000)]
    batch = OnGpu("float32", sizes, [i**2 % 5000 for i in range(3000)])
    for _ in range(2):
        batch.step()
        batch.expect_counted()
    batch.check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_control_with_scalars_of_the_host(dtype):
    batch = OnGpu(dtype)
    batch.scalar_of_row = [0] * len(SIZES)
    batch.rows[:, -1] = 0
    batch.expected_steps = list(STARTS)
    for step, (grad_scale, skip) in enumerate([(0.3, 0), (torch.nan, 1), (2.0**-16, 0)], 1):
        control = torch.tensor([grad_scale, skip], device=GPU)
        batch.new_grads()
        stream = torch.cuda.current_stream().cuda_stream
        batch.enqueue([scalars_at(step)], stream=stream, control=control.data_ptr())
        if not skip:
            batch.expect([scalars_at(step)], torch.tensor(grad_scale))
        batch.check()


def test_a_captured_step_counts_and_reads_what_it_is_told():
    batch = OnGpu("float32")
    control = torch.tensor([1.0, 0.0], device=GPU)
    batch.put(0, "lr", 1e-3, torch.float32)
    batch.put(1, "lr", 1e-3, torch.float64)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch.step(control.data_ptr())
    batch.check()  # nothing has run yet
    other = OnGpu("float32", seed=1)
    for replay in range(1, 7):
        for _ in range(9):  # these may take any slot, but not the graph's
            other.step()
            other.expect_counted()
        batch.put(0, "lr", 1e-3 * replay, torch.float32)
        batch.put(1, "lr", 0.1 / replay, torch.float64)
        control.copy_(torch.tensor([1.0 / replay, float(replay == 4)]))
        batch.new_grads()
        graph.replay()
        if replay != 4:
            batch.expect_counted(torch.tensor(1.0 / replay))
        batch.check()
    other.check()


class Sum:
    """The engine's sum of squares of tensors on the GPU, its workspace and its table."""

    def __init__(self, tensors, dtype):
        self.tensors, self.dtype = tensors, dtype
        segments = [-(-tensor.numel() // SEGMENT) for tensor in tensors]
        self.num_segments = sum(segments)
        first = np.cumsum([0, *segments])[:-1]
        addresses = [tensor.data_ptr() for tensor in tensors]
        sizes = [tensor.numel() for tensor in tensors]
        self.rows = np.array([addresses, sizes, first], np.int64).T.copy()
        self.workspace, self.out = (
            torch.full((n,), torch.nan, dtype=torch.float64, device=GPU)
            for n in (self.num_segments, 1)
        )

    def enqueue(self):
        addresses = self.workspace.data_ptr(), self.out.data_ptr()
        stream = torch.cuda.current_stream().cuda_stream
        counts = len(self.rows), self.num_segments
        extension.cuda.sum_squares(
            self.dtype, self.rows.ctypes.data, *counts, *addresses, GPU.index, stream
        )

    def check(self):
        expected = sum_squares([tensor.cpu() for tensor in self.tensors])
        assert_same_bits(self.out[0], expected)


def random(sizes, dtype, offset=0):
    generator = torch.Generator(GPU).manual_seed(6)
    return [
        torch.randn(n + offset, generator=generator, device=GPU).to(DTYPES[dtype])[offset:]
        for n in sizes
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_sum_squares(dtype, offset):
    for sizes in ((*EDGES, 20_000_003), [5] * (ROWS_BY_VALUE + 7), [0, 0], []):
        sum_of = Sum(random(sizes, dtype, offset), dtype)
        sum_of.enqueue()
        sum_of.check()


def test_a_captured_sum():
    sum_of = Sum(random(EDGES, "bfloat16"), "bfloat16")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sum_of.enqueue()
    for special in (0.5, torch.inf, torch.nan):
        sum_of.tensors[-1][-1] = special
        graph.replay()
        sum_of.check()
