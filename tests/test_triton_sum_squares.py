"""The Triton kernels' sum of squares: bit for bit the order of additions in csrc/engine/row.h."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import DTYPES
from helpers import assert_same_bits
from interpreted import INTERPRETED, InChildProcess, Interpreted
from torch import Tensor
from triton_rows import Guarded

pytest.importorskip("triton", reason="the Triton backend needs triton")

SEGMENT, LANES = 16384, 1024

EDGES = [0, 1, 3, 1023, 1024, 1025, SEGMENT - 1, SEGMENT, SEGMENT + 1]


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


def sum_in_order(values: Tensor) -> Tensor:
    """The contract's sum of one segment, or of all partial sums."""
    padded = torch.zeros(-(-len(values) // LANES) * LANES, dtype=torch.float64)
    padded[: len(values)] = values
    lanes = torch.zeros(LANES, dtype=torch.float64)
    for block in padded.view(-1, LANES):
        lanes = lanes + block
    while len(lanes) > 1:
        lower, upper = lanes.chunk(2)
        lanes = lower + upper
    return lanes[0]


def expected_sum(grads: list[Tensor]) -> Tensor:
    segments = [segment for grad in grads if len(grad) for segment in grad.double().split(SEGMENT)]
    partials = [sum_in_order(segment * segment) for segment in segments]
    return sum_in_order(torch.stack(partials) if partials else torch.zeros(0).double())


def sample(numel: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Values whose squares leave no order of additions without a trace."""
    exponents = torch.randint(-3, 4, (numel,), generator=generator)
    return (torch.randn(numel, generator=generator) * 10.0**exponents).to(dtype)


def test_other_orders_have_other_bits():
    """The tests below would see them; in one sum of many the last bit may happen to agree."""
    orders = {
        "neighbours": lambda squares: sum_of_neighbours(squares.view(-1, LANES).sum(0)),
        "in turn": lambda squares: squares.cumsum(0)[-1],
        "torch's": torch.sum,
        "blocks last": lambda squares: sum(sum_in_order(b) for b in squares.view(-1, LANES)),
    }
    found = set()
    for seed in range(20):
        squares = sample(SEGMENT, torch.float32, torch.Generator().manual_seed(seed)).double() ** 2
        expected = sum_in_order(squares)
        found |= {name for name, order in orders.items() if order(squares) != expected}
    assert found == set(orders)


def sum_of_neighbours(lanes: Tensor) -> Tensor:
    while len(lanes) > 1:
        lanes = lanes[0::2] + lanes[1::2]
    return lanes[0]


class Cases:
    """What holds in the interpreter and on a GPU."""

    device = ""

    @pytest.fixture
    def generator(self):
        return torch.Generator().manual_seed(20191012)

    def table(self, grads: list[Tensor]) -> tuple[Tensor, int]:
        rows, num_segments = [], 0
        for grad in grads:
            rows.append([grad.data_ptr(), len(grad), num_segments])
            num_segments += -(-len(grad) // SEGMENT)
        return torch.tensor(rows, device=self.device), num_segments

    def check(self, values: list[Tensor], offsets: list[int]) -> None:
        from adamod_fused.triton_kernels import engine

        offset = itertools.cycle(offsets)
        grads = [Guarded(value, next(offset), self.device) for value in values]
        table, num_segments = self.table([grad.tensor for grad in grads])
        total = engine.sum_squares(values[0].dtype, table, num_segments)
        assert_same_bits(total, expected_sum(values), "sum of squares")
        for grad, value in zip(grads, values, strict=True):
            grad.assert_equal(value, "gradient")

    @pytest.mark.parametrize("offset", [0, 1, 2, 3])
    @pytest.mark.parametrize("numel", EDGES)
    def test_one_tensor(self, numel, offset, generator):
        for dtype in DTYPES:
            self.check([sample(numel, dtype, generator)], [offset])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_many_tensors(self, dtype, generator):
        """Of no element, of several segments, aligned and not."""
        numels = [0, 5, 0, 0, 3 * SEGMENT + 17, 1, 2 * SEGMENT, 0, SEGMENT + LANES, 700, 0]
        self.check([sample(n, dtype, generator) for n in numels], [0, 0, 1, 4, 0, 8, 3])

    def test_many_segments(self, generator):
        """More partial sums than lanes, and than are loaded at once."""
        from adamod_fused.triton_kernels import sum_squares

        for num_partials in (0, 1, LANES - 1, LANES + 1, 8 * LANES, 8 * LANES + 1, 20_000):
            partials = sample(num_partials, torch.float64, generator).abs()
            out = torch.full((3,), 7.0, dtype=torch.float64, device=self.device)
            sum_squares.sum_partials[(1,)](
                partials.to(self.device), num_partials, out[1:], **sum_squares.OPTIONS
            )
            expected = torch.tensor([7.0, sum_in_order(partials), 7.0], dtype=torch.float64)
            assert_same_bits(out, expected, f"sum of {num_partials}")

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_extremes(self, dtype, generator):
        """Squares beyond float32's range on either side; the least and the greatest numbers."""
        least = torch.tensor([torch.finfo(dtype).smallest_normal]).to(dtype) / 8
        assert least > 0
        greatest = torch.tensor([torch.finfo(dtype).max]).to(dtype)
        self.check([least.repeat(20_000), -greatest.repeat(1500), -least, greatest], [0, 1])
        self.check([least.repeat(3000)], [0])
        self.check([torch.full((17_000,), -0.0, dtype=dtype)], [0])

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("place", [0, 1023, 1024, 16383, 16384, 16999])
    def test_one_value_that_is_not_finite(self, place, value, generator):
        grad = sample(17_000, torch.float32, generator)
        grad[place] = value
        self.check([sample(300, torch.float32, generator), grad], [0])
        assert expected_sum([grad]).isfinite().logical_not()

    def test_no_segment(self):
        from adamod_fused.triton_kernels import engine

        table = torch.tensor([[0, 0, 0], [0, 0, 0]], device=self.device)
        zero = torch.zeros((), dtype=torch.float64)
        assert_same_bits(engine.sum_squares(torch.float32, table, 0), zero, "of empty rows")

    def test_the_same_every_time(self, generator):
        from adamod_fused.triton_kernels import engine

        grads = [sample(n, torch.float32, generator).to(self.device) for n in (SEGMENT * 2, 999)]
        sums = [engine.sum_squares(torch.float32, *self.table(grads)) for _ in range(3)]
        assert sums[0] == sums[1] == sums[2]

    def test_more_than_2_to_the_31_elements(self, generator):
        """The last segments of a tensor whose first 2^31 elements are not there."""
        from adamod_fused.triton_kernels import engine

        values = sample(SEGMENT + 5, torch.float32, generator)
        grad = values.to(self.device)
        row = [grad.data_ptr() - 4 * 2**31, 2**31 + len(grad), -(2**31 // SEGMENT)]
        total = engine.sum_squares(torch.float32, torch.tensor([row], device=self.device), 2)
        assert_same_bits(total, expected_sum([values]), "sum of squares")


class TestInterpreted(Cases, Interpreted):
    __test__ = INTERPRETED
    device = "cpu"

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("offset", "wide"), [(0, 2), (3, 0)])
    def test_whole_segments_are_read_in_vectors(self, dtype, offset, wide, generator, promises):
        self.check([sample(2 * SEGMENT + 100, dtype, generator)], [offset])
        assert len(promises) == wide


@pytest.mark.gpu
class TestOnGpu(Cases):
    __test__ = not INTERPRETED
    device = "cuda"
