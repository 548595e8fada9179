"""The sum of squared gradients: the reference's order of additions on the CPU, and its accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from adamod_fused.backends import extension
from adamod_fused.backends.base import dtype_name
from adamod_fused.reference import SEGMENT_LANES, SEGMENT_SIZE, sum_squares

INSTRUCTION_SETS = extension.core.cpu_instruction_sets()
EDGES = [0, 1, 15, 16, 17, SEGMENT_LANES - 1, SEGMENT_LANES, SEGMENT_LANES + 1]
EDGES += [SEGMENT_SIZE - 1, SEGMENT_SIZE, SEGMENT_SIZE + 1, 3 * SEGMENT_SIZE + 5]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def by_kernel(grads: Sequence[Tensor], instruction_set: str, threads: int = 2) -> float:
    """Of gradients of one dtype, through the compiled table."""
    table = extension.core.Table([], 1, True)
    batch = table.add_batch(1, False)
    params = [torch.zeros_like(grad) for grad in grads]
    for param in params:
        table.add_param(param, 0, batch, torch.float32, list(param.stride()))
    assert table.load(params, grads, (), [torch.tensor(0.0) for _ in grads])
    grad_table = table.grad_table(range(len(grads)))
    dtype = dtype_name(grads[0].dtype)
    return extension.core.cpu_sum_squares(dtype, grad_table, threads, instruction_set)


def random_grads(sizes: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_as_the_reference(dtype: torch.dtype, instruction_set: str) -> None:
    for sizes in ([size] for size in EDGES):
        grads = random_grads(sizes, dtype)
        assert by_kernel(grads, instruction_set) == sum_squares(grads).item(), sizes
    grads = random_grads([*EDGES, *EDGES[::-1]], dtype)
    offset = [torch.cat([grad.new_zeros(1), grad])[1:] for grad in grads]  # unaligned
    expected = sum_squares(grads).item()
    for threads in (1, 2, 5):
        assert by_kernel(grads, instruction_set, threads) == expected
        assert by_kernel(offset, instruction_set, threads) == expected


def test_more_segments_than_lanes() -> None:
    grads = random_grads([3] * (SEGMENT_LANES + 7), torch.float32)
    assert by_kernel(grads, INSTRUCTION_SETS[-1]) == sum_squares(grads).item()


def test_the_order_of_additions_is_the_declared_one() -> None:
    """By hand, on numbers whose sum depends on the order: lanes first, then halves."""
    values = torch.zeros(2 * SEGMENT_LANES, dtype=torch.float64)
    big = 2.0**27  # its square is 2^54, beside which a 1 vanishes
    values[0], values[SEGMENT_LANES] = big, 1.0  # one lane: 2^54 + 1 is 2^54
    values[1], values[1 + SEGMENT_LANES // 2] = 1.0, 1.0  # two lanes, the halves of one: 2
    expected = big**2 + 2.0
    assert sum_squares([values]).item() == expected
    assert math.fsum(values.square().tolist()) == big**2 + 4.0  # 3 more, rounded to even
    for instruction_set in INSTRUCTION_SETS:
        assert by_kernel([values], instruction_set) == expected


def test_accuracy() -> None:
    grads = [1e20 * grad for grad in random_grads([100_003, 7], torch.float32)]
    exact = math.fsum(x * x for grad in grads for x in grad.double().tolist())
    assert abs(sum_squares(grads).item() / exact - 1) < 1e-14  # a float32 would have overflowed


def test_accuracy_of_many() -> None:
    """Where sums in float32 are a percent off already."""
    grad = torch.empty(2**26).normal_(1e-4, 1e-3, generator=torch.Generator().manual_seed(6))
    part = 1009
    exact = math.fsum(some.double().square().sum().item() for some in grad.split(part))
    # A float32's square is exact in float64, and of positive numbers k additions one after the
    # other are off by k * 2^-53 at most: 16 in a lane, 10 halvings, 4 segments a lane, 10 halvings.
    bound = (16 + 10 + 4 + 10 + part) * 2.0**-53
    assert abs(by_kernel([grad], INSTRUCTION_SETS[-1]) / exact - 1) <= bound


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_seen(value: float) -> None:
    grads = random_grads([SEGMENT_SIZE + 3, 5], torch.float32)
    grads[0][-1] = value
    assert not math.isfinite(by_kernel(grads, INSTRUCTION_SETS[-1]))
    assert not sum_squares(grads).isfinite()


def test_none_at_all() -> None:
    assert sum_squares([]).item() == 0.0
    assert by_kernel(random_grads([0], torch.float32), "baseline") == 0.0
