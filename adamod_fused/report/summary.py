"""The run in words: a few sentences and a small table, all computed from the numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from .series import Run, Tracked

NBSP = "\N{NO-BREAK SPACE}"
HARDLY = 0.01  # share of elements below which the bound does next to nothing


def sentences(run: Run) -> list[str]:
    """What a reader should know before looking at a figure."""
    first, last = run.tracked[0], run.tracked[-1]
    most = max((t.bounded for t in run.tracked if not math.isnan(t.bounded)), default=math.nan)
    found = [_held_back(first, last), _medians(first, last), _rates(run)]
    if most < HARDLY:
        found.append(
            f"The bound hardly ever acted, on {percent(most)} of the elements at most: "
            "these steps are Adam's. With beta3 = 0 they always are."
        )
    if last.dead:
        found.append(
            f"{last.dead:,} of {last.total:,} elements ({percent(last.dead / last.total)}) have "
            "had no gradient yet. Their rate is lr / eps, and their bound follows it."
        )
    bad = [t for t in run.tracked if t.nonfinite]
    if bad:
        found.append(
            f"Gradients or updates were inf or NaN in {len(bad):,} of {len(run.tracked):,} tracked "
            f"steps, first in step {bad[0].step:,}; optimizer.check_finite() names the tensor."
        )
    return found


def _held_back(first: Tracked, last: Tracked) -> str:
    start = f"The bound held back {percent(first.bounded)} of the elements in step {first.step:,}"
    if last is first:
        return f"{start}, the only one that was tracked so far."
    return f"{start}, {percent(last.bounded)} in step {last.step:,}."


def _medians(first: Tracked, last: Tracked) -> str:
    words = f"The median learning rate used was {_of_adams(first)} in step {first.step:,}"
    return f"{words}." if last is first else f"{words}, {_of_adams(last)} in step {last.step:,}."


def _of_adams(tracked: Tracked) -> str:
    if tracked.rate_median == 0:  # lr is 0, as in the first step of many schedules
        return "0, as Adam's is,"
    return f"{percent(tracked.bounded_rate_median / tracked.rate_median)} of Adam's"


def _rates(run: Run) -> str:
    first = run.tracked[0]
    words = (
        f"The largest learning rate in step {first.step:,} would have been {rate(first.rate_max)} "
        f"with Adam, and was {rate(first.bounded_rate_max)} with AdaMod."
    )
    if len(run.tracked) == 1:
        return words
    adam = max(run.tracked, key=lambda t: _or_zero(t.rate_max))
    used = max(run.tracked, key=lambda t: _or_zero(t.bounded_rate_max))
    return (
        f"{words} The largest of all tracked steps: {rate(adam.rate_max)} with Adam (step "
        f"{adam.step:,}), {rate(used.bounded_rate_max)} with AdaMod (step {used.step:,})."
    )


def table(run: Run) -> list[tuple[str, str, str]]:
    """Rows of a name and its values in the first and in the last tracked step."""
    first, last = run.tracked[0], run.tracked[-1]
    rows = [
        ("elements held back by the bound", *_each(run, lambda t: percent(t.bounded))),
        ("Adam's rate η, median", *_each(run, lambda t: rate(t.rate_median))),
        ("rate used min(η, s), median", *_each(run, lambda t: rate(t.bounded_rate_median))),
        ("Adam's rate η, largest", *_each(run, lambda t: rate(t.rate_max))),
        ("rate used min(η, s), largest", *_each(run, lambda t: rate(t.bounded_rate_max))),
        ("dead elements (no gradient yet)", f"{first.dead:,}", f"{last.dead:,}"),
        ("elements with inf or NaN", f"{first.nonfinite:,}", f"{last.nonfinite:,}"),
    ]
    losses = run.losses.get("loss")
    if losses:
        (_, start), (_, end) = losses[0], losses[-1]
        rows.append(("loss, first and last", f"{start:.4g}", f"{end:.4g}"))
    return rows


def _each(run: Run, show: Callable[[Tracked], str]) -> tuple[str, str]:
    return show(run.tracked[0]), show(run.tracked[-1])


def percent(share: float) -> str:
    """A share: never 0 % or 100 % unless it is none or all."""
    if math.isnan(share):
        return "no number"
    if 0 < share < 0.001:
        return f"less than 0.1{NBSP}%"
    if 0.999 < share < 1:
        return f"more than 99.9{NBSP}%"
    return f"{100 * share:.3g}{NBSP}%"


def rate(number: float) -> str:
    """Two significant digits: ``1.2e-5``, ``0.031``, ``100``, ``1e5``."""
    if math.isnan(number):
        return "no number"
    if 10 <= number < 1e4:
        return f"{float(f'{number:.2g}'):,.0f}"
    return re.sub(r"e([+-])0*", lambda e: "e" + e[1].strip("+"), f"{number:.2g}")


def _or_zero(number: float) -> float:
    return 0.0 if math.isnan(number) else number
