"""When a claim counts as reproduced: rules on confidence intervals.

Every part of a claim is an inequality between means over seeds, with a least effect that counts.
Its 95 % interval is Student's, of one value a seed: runs of one seed share weights and batches, so
two of them are compared with each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from scipy import stats

LEVEL = 0.95
REPRODUCED, NOT_REPRODUCED, UNCLEAR = "reproduced", "not reproduced", "unclear"


@dataclass(frozen=True)
class Interval:
    """A mean difference and where it lies with ``LEVEL`` confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """One inequality of a claim, with its verdict."""

    text: str
    unit: str
    interval: Interval
    effect: float
    verdict: str


def mean_of(values: Sequence[float]) -> Interval:
    """Of what the values are samples of, one a seed."""
    mean = statistics.fmean(values)
    error = sqrt(statistics.variance(values) / len(values))
    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return Interval(mean, mean - reach, mean + reach)


def difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Of a less b, where both have the same seeds in the same order."""
    return mean_of([x - y for x, y in zip(a, b, strict=True)])


def more(text: str, unit: str, interval: Interval, effect: float) -> Part:
    """The claim is that a difference is above zero, by at least ``effect``.

    Reproduced: all of the interval is above 0, and the mean at least ``effect``. Not reproduced:
    all of it is below ``effect``.
    """
    if interval.low > 0 and interval.mean >= effect:
        verdict = REPRODUCED
    elif interval.high < effect:
        verdict = NOT_REPRODUCED
    else:
        verdict = UNCLEAR
    return Part(text, unit, interval, effect, verdict)


def at_least(text: str, unit: str, interval: Interval, effect: float) -> Part:
    """The claim is that a difference is not below zero by ``effect`` or more.

    Reproduced: all of the interval is above -``effect``. Not reproduced: all of it is below 0,
    and the mean at most -``effect``.
    """
    if interval.low > -effect:
        verdict = REPRODUCED
    elif interval.high < 0 and interval.mean <= -effect:
        verdict = NOT_REPRODUCED
    else:
        verdict = UNCLEAR
    return Part(text, unit, interval, effect, verdict)


def equal(text: str, unit: str, interval: Interval, effect: float) -> Part:
    """The claim is that two means differ by less than ``effect``.

    Reproduced: all of the interval is within that. Not reproduced: it leaves out 0, and the mean
    lies beyond.
    """
    if -effect < interval.low and interval.high < effect:
        verdict = REPRODUCED
    elif abs(interval.mean) >= effect and not interval.low <= 0 <= interval.high:
        verdict = NOT_REPRODUCED
    else:
        verdict = UNCLEAR
    return Part(text, unit, interval, effect, verdict)


def overall(parts: Sequence[Part]) -> str:
    """Reproduced if all parts are; not reproduced if one is not."""
    found = {part.verdict for part in parts}
    if NOT_REPRODUCED in found:
        return NOT_REPRODUCED
    return UNCLEAR if UNCLEAR in found else REPRODUCED


RULES = f"""
The unit of all statistics is the seed. Runs of one seed share weights and batches, so that a - b is
taken seed by seed; Student's interval holds the mean of these differences with {100 * LEVEL:g} %
confidence.

"a is more than b" is reproduced if the interval of a - b lies above 0 and its mean is at least the
effect that counts; not reproduced if all of the interval is below that effect.

"a is at least b" is reproduced if all of the interval is above minus the effect; not reproduced if
all of it is below 0 and its mean is at most minus the effect.

"a equals b" is reproduced if all of the interval is within plus or minus the effect; not reproduced
if it leaves out 0 and its mean is at least the effect away from 0.

All else is unclear. A claim is reproduced if all its parts are, and not reproduced if one is not.

A run that reached infinity or NaN counts as one that learnt nothing: the accuracy of a guess, the
loss of guessing all tokens alike, a BLEU of 0.
"""
