"""What the page shows, as plain numbers: each tracked step, of the whole model and by tensor."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

from ..tracking import run_log
from ..tracking.rows import LOG2_EDGES, Row

PER_TENSOR = ("bounded", "dead", "grad_norm", "update_norm")


@dataclass
class Tracked:
    """A tracked step: its histograms of the whole model, its numbers by tensor."""

    step: int
    names: list[str]
    numel: array[int]
    by_tensor: dict[str, array[float]]
    """``PER_TENSOR`` of each tensor; dead as a share of the tensor's elements."""
    bounded: float
    """Share of the elements that are finite, from 0 to 1; NaN where none is."""
    rate_max: float
    bounded_rate_max: float
    dead: int
    nonfinite: int
    grad_norm: float
    update_norm: float
    rate_shares: list[float]
    """Share of all elements in each bin of eta."""
    bounded_rate_shares: list[float]
    """And of min(eta, s)."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Where in the lists a tensor is, by its name."""
        return {name: place for place, name in enumerate(self.names)}

    @property
    def rate_median(self) -> float:
        """Of eta."""
        return median(self.rate_shares, self.rate_max)

    @property
    def bounded_rate_median(self) -> float:
        """Of min(eta, s)."""
        return median(self.bounded_rate_shares, self.bounded_rate_max)

    @property
    def total(self) -> int:
        """All elements."""
        return sum(self.numel)


@dataclass
class Run:
    """A run's log in the shape of the page."""

    tracked: list[Tracked]
    losses: dict[str, list[tuple[int, float]]]
    """Steps and values of ``loss`` and of every scalar with "loss" in its name."""


def load(run_dir: str | PathLike[str]) -> Run:
    """Reads a run.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: it holds a bad line, or no tracked step.
    """
    # Compacted line by line: of a long run with many tensors the rows themselves are gigabytes.
    entries = run_log.merged(map(_compact, run_log.lines(run_dir)))
    run = Run([entry["rows"] for entry in entries if "rows" in entry], {})
    if not run.tracked:
        raise ValueError(
            f"{run_dir}/{run_log.FILE} has no tracked step yet; make the optimizer with "
            "AdaMod(..., track_bound=True), and call RunLog.log after optimizer.step()"
        )
    for entry in entries:
        scalars = {n: v for n, v in entry.get("scalars", {}).items() if "loss" in n.lower()}
        if "loss" in entry:
            scalars = {"loss": entry["loss"], **scalars}
        for name, value in scalars.items():
            run.losses.setdefault(name, []).append((entry["step"], value))
    return run


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("rows"):
        return entry | {"rows": _tracked(entry["step"], entry["rows"])}
    entry.pop("rows", None)
    return entry


def _tracked(step: int, rows: list[Row]) -> Tracked:
    by_tensor = {name: array("d", [row[name] for row in rows]) for name in PER_TENSOR}
    by_tensor["dead"] = array("d", [row["dead"] / max(1, row["numel"]) for row in rows])
    return Tracked(
        step=step,
        names=[sys.intern(row["name"]) for row in rows],  # kept for every step: one string each
        numel=array("q", [row["numel"] for row in rows]),
        by_tensor=by_tensor,
        bounded=_bounded(rows),
        rate_max=_largest(row["rate_max"] for row in rows),
        bounded_rate_max=_largest(row["bounded_rate_max"] for row in rows),
        dead=sum(row["dead"] for row in rows),
        nonfinite=sum(row["nonfinite"] for row in rows),
        grad_norm=math.hypot(*(row["grad_norm"] for row in rows)),
        update_norm=math.hypot(*(row["update_norm"] for row in rows)),
        rate_shares=_shares(rows, "rate_hist"),
        bounded_rate_shares=_shares(rows, "bounded_rate_hist"),
    )


def _bounded(rows: list[Row]) -> float:
    """A tensor without a finite element has no share, and no weight."""
    weighted = [(row["bounded"], row["numel"] - row["nonfinite"]) for row in rows]
    total = sum(weight for _, weight in weighted)
    return sum(x * weight for x, weight in weighted if weight) / total if total else math.nan


def _largest(numbers: Iterable[float]) -> float:
    return max((number for number in numbers if not math.isnan(number)), default=math.nan)


def _shares(rows: list[Row], name: str) -> list[float]:
    counts = [sum(bin_) for bin_ in zip(*(row[name] for row in rows), strict=True)]
    total = sum(counts)
    return [count / max(1, total) for count in counts]


def median(shares: list[float], largest: float) -> float:
    """The rate that half of the elements do not exceed: within its bin, by interpolation.

    No more than the ``largest``: the first bin holds all that is below it, rates of 0 too.
    """
    below = 0.0
    for exponent, share in zip(LOG2_EDGES, shares, strict=False):
        if share and below + share >= 0.5:
            return min(largest, 2.0 ** (exponent + (0.5 - below) / share))
        below += share
    return math.nan


def thinned(values: list[Any], most: int) -> list[Any]:
    """At most ``most`` of the values, evenly taken, the first and the last among them."""
    if len(values) <= most:
        return values
    last = len(values) - 1
    return [values[round(place * last / (most - 1))] for place in range(most)]


def averaged(
    points: list[tuple[int, float]], most: int
) -> tuple[list[int], list[float | None], int]:
    """Steps, values and how many points each value is the mean of; None where one is NaN."""
    window = math.ceil(len(points) / most)
    steps, values = [], list[float | None]()
    for start in range(0, len(points), window):
        part = points[start : start + window]
        mean = sum(value for _, value in part) / len(part)
        steps.append(part[-1][0])
        values.append(mean if math.isfinite(mean) else None)
    return steps, values, window
