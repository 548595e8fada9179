"""How an optimizer is watched: which steps are looked at, and what is read of them.

A step that is due has each backend look at the states that it left, in a pass of its own behind the
step; nothing waits for it until ``bound_stats()`` is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .hyperparameters import copied, on_host
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
from .validation import check_choice

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


def _rows(look: Look, by: str) -> list[dict[str, Any]]:
    observed: dict[int, tuple[Tensor, int]] = {}  # of a tensor that was stepped twice, the last
    for seen in look.seen:
        matrix = seen.observed.cpu()
        columns = zip(seen.ordinals, *(column.tolist() for column in seen.slots), strict=True)
        for ordinal, first, count, numel in columns:
            segments = matrix[first : first + count]
            if count and segments[0, 0] != 0:  # the step; 0 where it was skipped
                observed[ordinal] = segments, numel
    places = [(g, i) for g, group in enumerate(look.groups) for i in range(group.params)]
    parts: dict[tuple[int, int | None], list[tuple[Tensor, int]]] = {}
    for ordinal, found in sorted(observed.items()):
        group, index = places[ordinal]
        parts.setdefault((group, index if by == "tensor" else None), []).append(found)
    return [
        {
            "group": group,
            "index": index,
            "name": _name(look.groups[group], group, index),
            "numel": sum(numel for _, numel in found),
            "lr": on_host(look.groups[group].lr),
            **_summary(torch.cat([segments for segments, _ in found])),
        }
        for (group, index), found in parts.items()
    ]


def _name(group: GroupThen, number: int, index: int | None) -> str:
    if index is None:
        return f"group {number}"
    return group.names[index] if group.names else f"{number}.{index}"


def _summary(segments: Tensor) -> dict[str, Any]:
    """What segments tell together. Sums are exact before they are rounded, so have no order."""
    floats = segments[:, : len(FLOATS)].contiguous().view(torch.float64)
    column = dict(zip(FLOATS, floats.unbind(1), strict=True))
    whole = segments[:, len(FLOATS) :].sum(0)
    counts = dict(zip(COUNTS, whole.tolist(), strict=False))
    histograms = whole[len(COUNTS) :].view(len(HISTOGRAMS), HISTOGRAM_BINS)
    finite = int(histograms[0].sum())

    def total(name: str) -> float:
        try:
            return math.fsum(column[name].tolist())
        except OverflowError:  # float64 gradients beyond 1e150
            return math.inf

    def if_any(value: float) -> float:
        return value if finite else math.nan

    row: dict[str, Any] = {"step": int(column["step"].max())}
    row["bounded"] = counts["bounded"] / finite if finite else math.nan
    for k, name in enumerate(("rate", "bounded_rate")):
        row[f"{name}_min"] = if_any(float(column[f"{name}_min"].min()))
        row[f"{name}_max"] = if_any(float(column[f"{name}_max"].max()))
        row[f"{name}_mean"] = total(f"{name}_sum") / finite if finite else math.nan
        row[f"{name}_hist"] = histograms[k].tolist()
    row["grad_norm"] = math.sqrt(total("grad_square_sum"))
    row["update_norm"] = math.sqrt(total("update_square_sum"))
    return {**row, "dead": counts["dead"], "nonfinite": counts["nonfinite"]}
