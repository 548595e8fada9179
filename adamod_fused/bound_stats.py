"""How an optimizer is watched: which steps are looked at, and what is read of them.

A step that is due has each backend look at the states that it left, in a pass of its own behind the
step; nothing waits for it until ``bound_stats()`` is asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .hyperparameters import as_integer, copied, on_host
from .observed import (
    COUNTS,
    FLOATS,
    HISTOGRAM_BINS,
    HISTOGRAM_EXPONENT,
    HISTOGRAMS,
    Slots,
    empty_observations,
    slots_of,
)
from .validation import check_choice, name_of

EVERY = 100
"""How many steps apart two are that are looked at, where nothing else is said."""

HISTOGRAM_EDGES = tuple(2.0 ** (HISTOGRAM_EXPONENT + i) for i in range(HISTOGRAM_BINS + 1))
"""Of the bins of all histograms; the first bin takes all below it too, the last all above."""


def every_of(track_bound: Any) -> int:
    """The steps between two looks that the keyword asks for; 0 is never.

    Raises:
        TypeError: no bool and no whole number.
        ValueError: a negative number.
    """
    if isinstance(track_bound, bool):
        return EVERY if track_bound else 0
    track_bound = as_integer(track_bound)
    if not isinstance(track_bound, int):
        raise TypeError(
            f"track_bound must be True, False or a whole number of steps, got {track_bound!r}"
        )
    if track_bound < 0:
        raise ValueError(f"track_bound must be 0 (off) or a number of steps, got {track_bound}")
    return track_bound


class Seen(NamedTuple):
    """What one launch saw: the observations, where each tensor's lie, and whose they are."""

    observed: Tensor
    slots: Slots
    ordinals: Sequence[int]
    """Of each row of ``slots``, the parameter's place among all of the optimizer."""


class GroupThen(NamedTuple):
    """A param group as it was at the step: groups and a device's numbers change afterwards."""

    params: int
    names: Sequence[str] | None
    lr: Any


class Look:
    """What is seen of one step of the optimizer, in as many launches as it takes.

    ``number`` tells looks apart: steps, which a state dict may set back, do not.
    """

    def __init__(
        self,
        number: int,
        groups: Sequence[dict[str, Any]],
        hyperparameters: Sequence[dict[str, Any]],
    ) -> None:
        self.number = number
        self.seen: list[Seen] = []
        self.groups = [
            GroupThen(len(group["params"]), group.get("param_names"), copied(values.get("lr")))
            for group, values in zip(groups, hyperparameters, strict=True)
        ]

    def room(
        self, rows: memoryview, chunk_size: int, ordinals: Sequence[int], device: torch.device
    ) -> Tensor:
        """Zeroed observations of a batch's rows, for its backend to fill."""
        slots = slots_of(rows, chunk_size)
        self.add(empty_observations(slots.total, device), slots, ordinals)
        return self.seen[-1].observed

    def add(self, observed: Tensor, slots: Slots, ordinals: Sequence[int]) -> None:
        self.seen.append(Seen(observed, slots, ordinals))


class BoundTracker:
    """Decides which steps are looked at and keeps the last look.

    ``every``: the first step is looked at and from then on each ``every``-th; 0 is none.
    ``looks``: how many there were before, of another tracker.
    """

    def __init__(self, every: int = 0, looks: int = 0) -> None:
        self.every = every
        self.looks = looks
        self._done = 0  # steps since it began
        self._open: Look | None = None  # of a step that goes on
        self._last: Look | None = None
        self._before: Look | None = None  # for a last step that a loss scale's overflow skipped

    def look(
        self, groups: Sequence[dict[str, Any]], hyperparameters: Sequence[dict[str, Any]]
    ) -> Look | None:
        """What the launches of this step are to fill, or None where it is not looked at."""
        if self.every == 0 or self._done % self.every:
            return None
        if self._open is None:  # else the step goes on: gradients that backward releases in parts
            self.looks += 1
            self._open = Look(self.looks, groups, hyperparameters)
        return self._open

    def advance(self) -> None:
        """The step is over."""
        self._done += self.every > 0
        if self._open is not None:
            if self._last is not None and self._last.seen:
                self._before = self._last
            self._last, self._open = self._open, None

    def abandon(self) -> None:
        """The step failed: the next one is another, and what was seen before is still the last."""
        self._open = None

    def rows(self, by: str, after: int = 0) -> list[dict[str, Any]]:
        """The rows of ``AdaMod.bound_stats``."""
        check_choice("by", by, ("tensor", "group"))
        if self.every == 0:
            raise RuntimeError(
                "the bound is not tracked; make the optimizer with track_bound=True, or call "
                "track_bound() before the steps that are to be seen"
            )
        for look in (self._last, self._before):
            if look is not None and look.number > after and (found := _rows(look, by)):
                return found
        return []


Part = list[tuple[range, int]]
"""Of each tensor that a row tells of: where its segments lie, and its elements."""


def _rows(look: Look, by: str) -> list[dict[str, Any]]:
    matrices, stepped = _observations(look)
    if not stepped:
        return []
    places = _places(look.groups)
    parts: dict[tuple[int, int | None, str], Part] = {}
    for ordinal, tensor in sorted(stepped.items()):
        group = places[ordinal][0]
        place = places[ordinal] if by == "tensor" else (group, None, f"group {group}")
        parts.setdefault(place, []).append(tensor)
    lrs = [on_host(group.lr) for group in look.groups]
    table: dict[str, Iterable[Any]] = {
        **dict(zip(("group", "index", "name"), zip(*parts, strict=True), strict=True)),
        "numel": [sum([numel for _, numel in part]) for part in parts.values()],
        "lr": [lrs[group] for group, *_ in parts],
        **_summaries(Segments(matrices, list(parts.values()))),
    }
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _observations(look: Look) -> tuple[list[Tensor], dict[int, tuple[range, int]]]:
    """Of all launches, and which of their rows, counted through, are a tensor's, by its number.

    With each go its elements.
    """
    matrices = [seen.observed.cpu() for seen in look.seen]
    stepped: dict[int, tuple[range, int]] = {}
    above = 0
    for seen, matrix in zip(look.seen, matrices, strict=True):
        steps = matrix[:, 0].tolist()  # 0 where it was skipped
        columns = zip(seen.ordinals, *(column.tolist() for column in seen.slots), strict=True)
        for ordinal, first, segments, numel in columns:
            if segments and steps[first]:
                stepped[ordinal] = range(above + first, above + first + segments), numel
        above += len(steps)
    return matrices, stepped


def _places(groups: Sequence[GroupThen]) -> list[tuple[int, int, str]]:
    """Of each parameter its group, its place there and its name; both stand behind a name twice."""
    places = [
        (g, i, name_of(group.names, i) or f"{g}.{i}")
        for g, group in enumerate(groups)
        for i in range(group.params)
    ]
    counts = Counter([name for *_, name in places])
    if len(counts) == len(places):
        return places
    return [(g, i, n if counts[n] == 1 else f"{n} ({g}.{i})") for g, i, n in places]


class Segments:
    """The segments of several parts, one part's after another's, and what each part's come to.

    A handful of operations for all parts: of many small tensors each would take its time.
    """

    def __init__(self, matrices: list[Tensor], parts: Sequence[Part]) -> None:
        rows = [row for part in parts for segments, _ in part for row in segments]
        sizes = [sum([len(segments) for segments, _ in part]) for part in parts]
        self._sizes = torch.tensor(sizes, device="cpu")
        ends = accumulate(sizes)
        self._slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        observed = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        observed = observed.index_select(0, torch.tensor(rows, device="cpu"))
        floats = observed[:, : len(FLOATS)].t().contiguous().view(torch.float64)
        self._columns = dict(zip(FLOATS, floats, strict=True))
        counts = observed[:, len(FLOATS) :]
        zeros = counts.new_zeros(len(parts), counts.shape[1])
        self.counts = zeros.index_add_(0, torch.repeat_interleave(self._sizes), counts)

    def extreme(self, which: str, name: str) -> Tensor:
        """The ``min`` or the ``max`` of a column."""
        return torch.segment_reduce(self._columns[name], which, lengths=self._sizes)

    def totals(self, name: str) -> list[float]:
        """Of a column: exact before it is rounded, so that it has no order."""
        numbers: list[float] = self._columns[name].tolist()
        if len(numbers) == len(self._slices):  # one segment each
            return numbers
        return [_sum(numbers[part]) for part in self._slices]


def _sum(numbers: Sequence[float]) -> float:
    try:
        return math.fsum(numbers)
    except OverflowError:  # float64 gradients beyond 1e150
        return math.inf


def _summaries(segments: Segments) -> dict[str, list[Any]]:
    """Columns of what the segments of each part tell together."""
    widths = (1,) * len(COUNTS) + (HISTOGRAM_BINS,) * len(HISTOGRAMS)
    bounded, dead, nonfinite, *histograms = segments.counts.split_with_sizes(widths, 1)
    finite = histograms[0].sum(1).double()  # as float64 has them, all counts are exact
    table: dict[str, list[Any]] = {
        "step": segments.extreme("max", "step").long().tolist(),
        "bounded": (bounded[:, 0].double() / finite).tolist(),
    }
    for name, histogram in zip(("rate", "bounded_rate"), histograms, strict=True):
        for which in ("min", "max"):
            extreme = segments.extreme(which, f"{name}_{which}")
            table[f"{name}_{which}"] = extreme.where(finite > 0, math.nan).tolist()
        totals = torch.tensor(segments.totals(f"{name}_sum"), dtype=torch.float64, device="cpu")
        table[f"{name}_mean"] = (totals / finite).tolist()
        table[f"{name}_hist"] = histogram.tolist()
    for name in ("grad", "update"):  # torch's square root is not always the nearest number
        table[f"{name}_norm"] = [math.sqrt(x) for x in segments.totals(f"{name}_square_sum")]
    return {**table, "dead": dead[:, 0].tolist(), "nonfinite": nonfinite[:, 0].tolist()}
