"""How cost grows: a line through the measured points of a sweep, with slope and intercept.

The sum of the squared *relative* errors is the least. Costs of a sweep span decades: the absolute
errors of the largest list alone would decide, and the intercept, which is the cost of a step that
has next to nothing to do, would be noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .record import Fit, ListFacts, Result, rounded

SWEEPS = {"elements": "size-", "tensors": "tensors-"}
"""What a fit is against, and how the lists of its sweep begin."""

LEAST_POINTS = 3  # a line through two says nothing about lines

Points = list[tuple[float, float]]


class Sweep(NamedTuple):
    """Whose cost, and against what."""

    contestant: str
    dtype: str
    against: str


class Line(NamedTuple):
    """``y = intercept + slope * x``; r_squared is that of the weighted points."""

    slope: float
    intercept: float
    r_squared: float


def line(points: Points) -> Line:
    """The line of least squared relative errors through at least two points with y > 0."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    weights = [1 / y**2 for y in ys]
    total = sum(weights)

    def mean(values: Iterable[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / total

    x_mean, y_mean = mean(xs), mean(ys)
    x_variance = mean((x - x_mean) ** 2 for x in xs)
    covariance = mean((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    slope = covariance / x_variance
    intercept = y_mean - slope * x_mean
    unexplained = mean((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    y_variance = mean((y - y_mean) ** 2 for y in ys)
    return Line(slope, intercept, 1 - unexplained / y_variance if y_variance else 1.0)


def cost_us(result: Result, against: str) -> float:
    """Microseconds of a step; against tensors on a GPU with the host's, which is most of them."""
    if against == "tensors" and result.wall_us is not None:
        return result.wall_us.median
    return result.step_ms.median * 1e3


def sweep_points(results: Iterable[Result], lists: Mapping[str, ListFacts]) -> dict[Sweep, Points]:
    """What each contestant, dtype and sweep was measured with: sizes and microseconds."""
    found: dict[Sweep, Points] = {}
    for result in results:
        for against, prefix in SWEEPS.items():
            if result.list.startswith(prefix):
                size = getattr(lists[result.list], against)
                sweep = Sweep(result.contestant, result.dtype, against)
                found.setdefault(sweep, []).append((size, cost_us(result, against)))
    return {sweep: sorted(pairs) for sweep, pairs in found.items()}


def exponent(points: Points) -> float:
    """How fast cost grows from the last but one size to the last: 1 is linear, 2 quadratic."""
    (x, y), (x_last, y_last) = points[-2:]
    return math.log(y_last / y) / math.log(x_last / x)


def fits(results: Iterable[Result], lists: Mapping[str, ListFacts]) -> tuple[Fit, ...]:
    """A fit for each contestant and dtype of each sweep that has points enough."""
    sweeps = sweep_points(results, lists).items()
    return tuple(_fit(*key, found) for key, found in sweeps if len(found) >= LEAST_POINTS)


def _fit(contestant: str, dtype: str, against: str, points: Points) -> Fit:
    slope, intercept, r_squared = map(rounded, line(points))
    return Fit(contestant, dtype, against, rounded(slope * 1e3), intercept, r_squared, len(points))
