"""What every writer does with rows of ``bound_stats()``: hands out, flattens to tags."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..bound_stats import HISTOGRAM_EDGES

Row = dict[str, Any]
"""One of ``AdaMod.bound_stats()``."""

NUMBERS = (
    "bounded",
    "rate_min",
    "rate_mean",
    "rate_max",
    "bounded_rate_min",
    "bounded_rate_mean",
    "bounded_rate_max",
    "grad_norm",
    "update_norm",
    "dead",
    "nonfinite",
)
"""The columns that are curves over time."""

HISTOGRAMS = ("rate_hist", "bounded_rate_hist")

LOG2_EDGES = [round(math.log2(edge)) for edge in HISTOGRAM_EDGES]
"""The exponents of the edges: loggers draw bins on a linear axis, where powers of two vanish."""


class NewRows:
    """Hands out the rows of each tracked step of one optimizer once."""

    def __init__(self, per_tensor: bool = False) -> None:
        self._by = "tensor" if per_tensor else "group"
        self._whose: weakref.ref[Any] | None = None
        self._looks: int | None = None  # so that the first call asks, and is told if it is off

    @contextmanager
    def of(self, optimizer: Any) -> Iterator[list[Row]]:
        """The rows of the last tracked step, or none if they were handed out before.

        They are once the block ends well: what failed to be written is handed out again.
        """
        if self._whose is None or self._whose() is not optimizer:  # which counts its own looks
            self._whose, self._looks = weakref.ref(optimizer), None
        looks = optimizer.bound_looks
        # To be called in every step: only where there is something new may it wait for a device.
        if looks == self._looks:
            yield []
        else:
            yield optimizer.bound_stats(by=self._by, after=self._looks or 0)
            self._looks = looks


def count_of(optimizer: Any) -> int:
    """Steps done: the largest count of any tensor, since some may have come later or been skipped.

    Each device is waited for once.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for state in optimizer.state.values():
        if state:  # reading `optimizer.state[param]` leaves an empty entry behind
            by_device.setdefault(state["step"].device, []).append(state["step"])
    return max((int(torch.stack(c).max().item()) for c in by_device.values()), default=0)


def scalars(rows: Iterable[Row]) -> dict[str, float]:
    """``{"adamod_bounded/group_0": 0.98, ...}``: a section for each column in most loggers."""
    return {f"{section}/{name}": number for section, name, number in _cells(rows, NUMBERS)}


def histograms(rows: Iterable[Row]) -> dict[str, list[int]]:
    """``{"adamod_rate_hist_log2/group_0": counts, ...}``: 64 bins between ``LOG2_EDGES``."""
    return {f"{section}_log2/{name}": counts for section, name, counts in _cells(rows, HISTOGRAMS)}


def _cells(rows: Iterable[Row], columns: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    for row in rows:
        name = row["name"].replace(" ", "_")  # as TensorBoard would, with a warning
        for column in columns:
            yield f"adamod_{column}", name, row[column]


def unwrapped(optimizer: Any) -> Any:
    """The AdaMod inside what a trainer wraps around its optimizers.

    Raises:
        TypeError: there is none.
    """
    inner = optimizer
    while not hasattr(inner, "bound_stats"):
        if not hasattr(inner, "optimizer"):
            raise TypeError(
                f"statistics of a bound are AdaMod's, and the optimizer is {type(inner).__name__}; "
                "train with AdaMod(..., track_bound=True) or leave the callback out"
            )
        inner = inner.optimizer
    return inner
