"""Measures contestants on one list and dtype: side by side, in alternating blocks of steps.

Whatever disturbs the machine for a while hits all of them alike. Those that are far slower take
fewer steps, so that each has about the same time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from adamod_fused.backends.base import dtype_name

from .clocks import Clock, Samples
from .contestants import BASELINE, Contestant
from .lists import ParamList
from .machine import GIB
from .record import Result, Spread, rounded
from .work import FIRST_SLEEP, ValuesAndGrads, Work

TWIN_SHAPE = (16,)
WIDEST_STATE = 4  # bytes of an element; float64 parameters have states as wide as they are
MOST_STATES = 3
TEMPORARIES = 3  # as large as all parameters, of contestants that are not fused
BASELINE_SHARE = 3  # the baseline takes a third of its steps again beside every other contestant
FREE_SHARE = 0.9  # of the free memory that may be taken


@dataclass(frozen=True)
class Effort:
    """How much measuring a list and dtype is worth."""

    seconds: float
    """For all contestants together; making and warming them up comes on top."""
    rounds: int = 5
    most: int = 50
    """Steps of a contestant in a round. The least is one."""

    def steps(self, cost: float, contestants: int) -> int:
        """Of a contestant in a round, where ``cost`` is the seconds of a step and its gradients."""
        return max(1, min(self.most, int(self.seconds / self.rounds / contestants / cost)))


@dataclass
class Entry:
    """A contestant beside others: what it works on, and what was found."""

    work: Work
    twin: Work | None
    steps: int = 1
    samples: Samples = field(default_factory=Samples)
    over_adam: list[float] = field(default_factory=list)
    """Of each round: a step over one of the baseline's just before."""
    peak_bytes: int | None = None
    launches: int | None = None


class Comparison:
    """Contestants side by side on one list and dtype.

    ``failed`` holds those that could not be made or stepped, with their words.
    """

    def __init__(
        self, params: ParamList, dtype: torch.dtype, clock: Clock, contestants: Sequence[Contestant]
    ) -> None:
        self.failed: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._params, self._dtype, self._clock = params, dtype, clock
        data = ValuesAndGrads.make(params.shapes, dtype, clock.device)
        tiny = ValuesAndGrads.make((TWIN_SHAPE,) * params.tensors, dtype, clock.device)
        copies = clock.copies(_set_bytes(params, dtype), params.tensors)
        for contestant in contestants:
            with self._or_out(contestant):
                work = Work(contestant, data, copies)
                twin = Work(contestant.twin, tiny) if clock.twins else None
                self._entries[contestant.name] = Entry(work, twin)

    @contextmanager
    def _or_out(self, contestant: Contestant) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others go on
            self._entries.pop(contestant.name, None)
            self.failed[contestant.name] = in_one_line(error)

    def warm_up(self, effort: Effort) -> None:
        """Has everyone make its states and compile what it wants; settles the steps of a round."""
        clock = self._clock
        for entry in [*self._entries.values()]:
            with self._or_out(entry.work.contestant):
                clock.measure(entry.work, entry.twin, 1)
                entry.work.sleep = FIRST_SLEEP  # what first steps need says nothing of others
                start = time.perf_counter()
                clock.measure(entry.work, entry.twin, 1)
                cost = time.perf_counter() - start
                entry.steps = effort.steps(cost, len(self._entries))
                entry.peak_bytes = clock.peak_bytes(entry.work)
                entry.launches = clock.launches(entry.work)

    def round(self) -> None:
        """A block of steps of everyone, each right after some of the baseline's.

        A shared machine is slow for some seconds and then fast again; a round may take as long.
        What is to be compared with the baseline is measured beside it.
        """
        for entry in [*self._entries.values()]:
            baseline_ms = self._baseline_ms(entry)
            with self._or_out(entry.work.contestant):
                block = self._clock.measure(entry.work, entry.twin, entry.steps)
                entry.samples.extend(block)
                if baseline_ms is not None:
                    entry.over_adam.append(statistics.median(block.step_ms) / baseline_ms)

    def _baseline_ms(self, entry: Entry) -> float | None:
        """Of the baseline's step now; None where there is none to compare ``entry`` with."""
        baseline = self._entries.get(BASELINE)
        if baseline is None or entry is baseline:
            return None
        block = Samples()
        with self._or_out(baseline.work.contestant):
            steps = -(-baseline.steps // BASELINE_SHARE)
            block = self._clock.measure(baseline.work, None, steps)
        baseline.samples.extend(block)
        return statistics.median(block.step_ms) if block.step_ms else None

    def results(self, copy_gb_per_s: float) -> list[Result]:
        """What the rounds so far found."""
        return [self._result(entry, copy_gb_per_s) for entry in self._entries.values()]

    def _result(self, entry: Entry, copy_gb_per_s: float) -> Result:
        params, samples = self._params, entry.samples
        step_ms, host_us = Spread.of(samples.step_ms), _spread(samples.host_us)
        held_bytes = entry.work.state_bytes()
        set_bytes = 2 * self._dtype.itemsize * params.numel + held_bytes
        state_bytes = held_bytes / params.numel
        # Every stream once: parameter, gradient and states are read, all but the gradient written.
        bytes_per_param = 3 * self._dtype.itemsize + 2 * state_bytes
        gb_per_s = bytes_per_param * params.numel / step_ms.median / 1e6
        over_adam = [1.0] if entry.work.contestant.name == BASELINE else entry.over_adam
        kernel_us = statistics.median(samples.kernel_us) if samples.kernel_us else None
        return Result(
            list=params.name,
            contestant=entry.work.contestant.name,
            dtype=dtype_name(self._dtype),
            step_ms=step_ms,
            wall_us=_spread(samples.wall_us),
            host_us=host_us,
            host_us_per_tensor=rounded(host_us.median / params.tensors) if host_us else None,
            kernel_us=rounded(kernel_us) if kernel_us is not None else None,
            bytes_per_param=rounded(bytes_per_param),
            GB_per_s=rounded(gb_per_s),
            share_of_copy=rounded(gb_per_s / copy_gb_per_s),
            over_adam=rounded(statistics.median(over_adam)) if over_adam else None,
            state_bytes_per_param=rounded(state_bytes),
            peak_bytes=entry.peak_bytes,
            launches=entry.launches,
            host_in_step=samples.host_in_step,
            in_cache=self._clock.in_cache(set_bytes, entry.work.copies),
        )


def groups(
    contestants: Sequence[Contestant], params: ParamList, dtype: torch.dtype, clock: Clock
) -> list[list[Contestant]]:
    """The contestants in as few groups as fit in memory at once, each with the baseline.

    Raises:
        MemoryError: not even one beside the baseline fits.
    """
    if not contestants:
        return []
    state_itemsize = max(WIDEST_STATE, dtype.itemsize)
    set_bytes = _set_bytes(params, dtype)
    each = set_bytes * clock.copies(set_bytes, params.tensors)
    shared = params.numel * (2 * dtype.itemsize + TEMPORARIES * state_itemsize)
    free = clock.free_bytes()
    places = int((FREE_SHARE * free - shared) // each)
    if places >= len(contestants):
        return [list(contestants)]
    baseline = [contestant for contestant in contestants if contestant.name == BASELINE]
    others = [contestant for contestant in contestants if contestant.name != BASELINE]
    places -= len(baseline)
    if places < 1:
        needed = (shared + (1 + len(baseline)) * each) / FREE_SHARE
        raise MemoryError(
            f"it takes {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free"
        )
    return [baseline + others[i : i + places] for i in range(0, len(others), places)]


def in_one_line(error: BaseException) -> str:
    """An error's type and the first words of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _set_bytes(params: ParamList, dtype: torch.dtype) -> int:
    """At most, of a contestant's parameters, gradients and states."""
    state_itemsize = max(WIDEST_STATE, dtype.itemsize)
    return params.numel * (2 * dtype.itemsize + MOST_STATES * state_itemsize)


def _spread(values: list[float]) -> Spread | None:
    return Spread.of(values) if values else None
