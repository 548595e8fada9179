"""A look at a step just done: what is kept of each segment of a tensor, and the oracle's look.

csrc/engine/observed.h says what it is; every backend gives the same bits. An observation is a row
of 64-bit words, and a batch's observations are a matrix of int64, ``[slots, COLUMNS]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import SEGMENT_SIZE, sum_in_lanes

HISTOGRAM_BINS = 64
HISTOGRAM_EXPONENT = -40
LANES = 256

FLOATS = (
    "step",
    "rate_sum",
    "bounded_rate_sum",
    "grad_square_sum",
    "update_square_sum",
    "rate_min",
    "rate_max",
    "bounded_rate_min",
    "bounded_rate_max",
)
"""The first columns, float64; what follows are whole numbers."""
COUNTS = ("bounded", "dead", "nonfinite")
HISTOGRAMS = ("rate_histogram", "bounded_rate_histogram")
COLUMNS = len(FLOATS) + len(COUNTS) + len(HISTOGRAMS) * HISTOGRAM_BINS

# Columns of a batch's rows, csrc/engine/row.h.
_ROW_SIZE, _NUMEL, _FIRST_CHUNK = 8, 5, 6


class Slots(NamedTuple):
    """Where the observations of a batch's rows lie, each a row of int64."""

    first: Tensor
    segments: Tensor
    numel: Tensor
    """Elements of each row."""

    @classmethod
    def of_one(cls, numel: int) -> Slots:
        """Of one tensor alone."""
        return cls(
            *(torch.tensor([n], device="cpu") for n in (0, -(-numel // SEGMENT_SIZE), numel))
        )

    @property
    def total(self) -> int:
        """Slots of all rows, unused ones included."""
        return int(self.first[-1] + self.segments[-1]) if len(self.first) else 0


def slots_of(rows: memoryview, chunk_size: int) -> Slots:
    """The slots of the rows of a batch, as csrc/engine/observed.h numbers them."""
    if not len(rows):
        return Slots(*(torch.empty(0, dtype=torch.int64, device="cpu") for _ in Slots._fields))
    matrix = torch.frombuffer(rows, dtype=torch.int64).view(-1, _ROW_SIZE)
    numel = matrix[:, _NUMEL].clone()
    turns = torch.arange(len(matrix), device="cpu")
    first = matrix[:, _FIRST_CHUNK] * chunk_size // SEGMENT_SIZE + turns
    return Slots(first, -(-numel // SEGMENT_SIZE), numel)


def empty_observations(slots: int, device: torch.device) -> Tensor:
    """Room for so many; where nothing was written, the step reads 0."""
    return torch.zeros(slots, COLUMNS, dtype=torch.int64, device=device)


def histogram_bin(rate: Tensor) -> Tensor:
    """The bin of each rate, int64, by its float32 exponent."""
    exponent = rate.float().view(torch.int32).long().bitwise_and(0xFFFFFFFF) >> 23
    return (exponent - (127 + HISTOGRAM_EXPONENT)).clamp(0, HISTOGRAM_BINS - 1)


def observe(
    rule: Any, scalars: Any, grad: Tensor, states: Sequence[Tensor], grad_scale: float
) -> Tensor:
    """The observations of one tensor's segments: what every kernel must equal bit for bit.

    Args:
        rule: a rule of ``reference.py``.
        scalars: those of the step just done.
        grad: as it was given to that step, in one dimension, the order of elements in memory.
        states: the values that the step left, likewise, of the dtype that the step computes in.
        grad_scale: what the gradient was multiplied by.
    """
    seen = rule.observe(scalars, *states)
    grad = grad.to(states[0].dtype) * grad_scale
    is_finite = grad.isfinite() & seen.update.isfinite()

    def segments(values: Tensor, rest: Any) -> Tensor:
        values = torch.where(is_finite, values, torch.full_like(values, rest))
        padding = (0, -len(values) % SEGMENT_SIZE)
        return torch.nn.functional.pad(values, padding, value=rest).view(-1, SEGMENT_SIZE)

    def total(values: Tensor) -> Tensor:
        return sum_in_lanes(segments(values, 0), LANES)

    def count(found: Tensor) -> Tensor:
        return segments(found.long(), 0).sum(1)

    def histogram(rates: Tensor) -> Tensor:
        bins = segments(histogram_bin(rates), HISTOGRAM_BINS)  # one more for what does not count
        counts = torch.zeros(len(bins), HISTOGRAM_BINS + 1, dtype=torch.int64, device=grad.device)
        counts.scatter_add_(1, bins, torch.ones_like(bins))
        return counts[:, :HISTOGRAM_BINS]

    rate, bounded_rate = seen.rate.double(), seen.bounded_rate.double()
    sums = [total(rate), total(bounded_rate)]
    sums += [total(grad.double().square()), total(seen.update.double().square())]
    step = torch.full_like(sums[0], scalars.step).to(seen.rate.dtype).double()  # as kernels have it
    extremes = [
        extreme
        for values in (rate, bounded_rate)
        for extreme in (segments(values, torch.inf).amin(1), segments(values, -torch.inf).amax(1))
    ]
    counts = [count(seen.bounded_rate < seen.rate), count(seen.activity == 0)]
    padded = torch.nn.functional.pad(~is_finite, (0, -len(grad) % SEGMENT_SIZE))
    counts.append(padded.view(-1, SEGMENT_SIZE).sum(1))
    floats = torch.stack([step, *sums, *extremes], 1).view(torch.int64)
    histograms = [histogram(seen.rate), histogram(seen.bounded_rate)]
    return torch.cat([floats, torch.stack(counts, 1), *histograms], 1)
