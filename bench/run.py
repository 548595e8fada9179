"""The run: list after list, the gate before the clock; after each list the record is written."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adamod_fused.backends.base import dtype_name
from adamod_fused.console import Console

from . import fits, gate, machine, record
from .clocks import Clock
from .contestants import Contestant, contestants, named, refused
from .measure import Comparison, Effort, groups, in_one_line
from .plan import Job, unfit
from .record import LeftOut, ListFacts, Record, Result, rounded
from .report import OURS, headline
from .roofline import Roofline

EVERYONE = "all"  # whom something left out is about that is about a whole list

BUSY = 0.5  # load of other programs that is worth a word
CTRL_C = "stopped by Ctrl-C"
SECONDS_TO_FINISH = 15  # of --minutes, for the tables and figures
SECONDS_TO_RING_AGAIN = 5  # should some library have swallowed the alarm


class NothingToMeasureError(Exception):
    """No contestant that was asked for works here."""


class OutOfTime(BaseException):
    """--minutes are over; like KeyboardInterrupt, nothing that handles an Exception stops it."""


@dataclass(frozen=True)
class Settings:
    """What a run is asked for."""

    device: torch.device
    jobs: Sequence[Job]
    effort: Effort
    contestants: Sequence[str]
    absent: dict[str, str]
    """Contestants that are not asked for, and why not."""
    patient: bool
    """Whether those that compile for every shape get lists of many shapes too."""
    quick: bool
    minutes: float | None
    commit: str | None
    out: Path

    @property
    def path(self) -> Path:
        return self.out / f"bench-{self.device.type}.json"


class BenchmarkRun:
    """A run under way, and what it has found so far."""

    def __init__(self, settings: Settings, clock: Clock, console: Console) -> None:
        self.red = False
        """Whether ours failed somewhere, at the gate or after it."""
        self._settings, self._clock, self._console = settings, clock, console
        self._date = machine.date()
        self._machine = machine.machine(settings.device)
        self._commit = settings.commit or machine.commit()
        self._absent = dict(settings.absent)
        self._present: list[Contestant] = []
        self._roofline = Roofline(clock)
        self._results: list[Result] = []
        self._left_out: list[LeftOut] = []

    def go(self) -> str | None:
        """Measures everything; returns what stopped it early, or None.

        Raises:
            NothingToMeasureError: no contestant that was asked for works here.
        """
        to_do = list(self._settings.jobs)
        try:
            with _alarm(self._settings.minutes):
                self._prepare()
                with self._console.progress("bench", len(to_do)) as advance:
                    for done, job in enumerate(self._settings.jobs, start=1):
                        self._measure(job)
                        to_do.remove(job)
                        self.save(complete=not to_do)
                        advance(done, str(job))
        except KeyboardInterrupt:
            stopped = CTRL_C
        except OutOfTime:
            stopped = f"--minutes {self._settings.minutes:g} were over"
        else:
            return None
        for job in to_do:
            self._leave_out(job, EVERYONE, stopped)
        return stopped

    def save(self, complete: bool) -> Record:
        """Writes the record as it stands, and returns it."""
        settings = self._settings
        lists = {
            params.name: ListFacts(params.tensors, params.numel, params.source)
            for params, _ in settings.jobs
        }
        copy = self._roofline.copy
        if copy is not None:  # it has more samples now than when a result was made
            self._results = [
                replace(result, share_of_copy=rounded(result.GB_per_s / copy.median))
                for result in self._results
            ]
        found = Record(
            schema=record.SCHEMA,
            complete=complete,
            quick=settings.quick,
            date=self._date,
            commit=self._commit,
            device=settings.device.type,
            machine=self._machine,
            versions=machine.versions(contestant.package for contestant in self._present),
            copy_GB_per_s=copy,
            in_place_GB_per_s=self._roofline.in_place,
            absent=self._absent,
            left_out=tuple(self._left_out),
            lists=lists,
            results=tuple(self._results),
            fits=fits.fits(self._results, lists),
        )
        record.save(found, settings.path)
        return found

    def _prepare(self) -> None:
        settings = self._settings
        load = self._machine["load"]
        if isinstance(load, float) and load > BUSY:
            self._console.line(f"other programs are at work here (load {load}): times will scatter")
        self._present, absent = contestants(settings.device, settings.contestants)
        self._absent |= absent
        # Ours that should work and does not is no mere absence.
        self.red = any(self._should_work(name) for name in absent)
        if not self._present:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
            raise NothingToMeasureError(f"none of the contestants works here: {reasons}")

    def _should_work(self, name: str) -> bool:
        return name.startswith(OURS) and refused(named(name), self._clock.device) is None

    def _measure(self, job: Job) -> None:
        self._roofline.sample()
        fit = [contestant for contestant in self._present if self._fits(contestant, job)]
        try:
            groups(fit, *job, self._clock)  # now, because the gate needs memory too
        except MemoryError as error:
            self._leave_out(job, EVERYONE, str(error))
            return
        admitted = [contestant for contestant in fit if self._passes_gate(contestant, job)]
        results: dict[str, Result] = {}
        for group in groups(admitted, *job, self._clock):
            for result in self._compare(group, job):
                # The baseline is in every group, for the ratios; its own times are the first's.
                results.setdefault(result.contestant, result)
            gc.collect()
        self._results += results.values()
        self._console.line(headline(str(job), list(results.values())))

    def _fits(self, contestant: Contestant, job: Job) -> bool:
        reason = unfit(contestant, job, self._settings.device, self._settings.patient)
        if reason is not None:
            self._leave_out(job, contestant.name, reason)
        return reason is None

    def _passes_gate(self, contestant: Contestant, job: Job) -> bool:
        if not contestant.ours:
            return True
        try:
            difference = gate.differs(contestant, job.params.shapes, job.dtype, self._clock.device)
        except Exception as error:  # noqa: BLE001 - told, recorded, and the exit code is 1
            difference = in_one_line(error)
        if difference is not None:
            self.red = True
            self._leave_out(job, contestant.name, f"red gate: {difference}")
            self._console.line(f"RED GATE, not timed: {contestant.name} on {job}: {difference}")
        return difference is None

    def _compare(self, group: Sequence[Contestant], job: Job) -> list[Result]:
        try:
            comparison = Comparison(*job, self._clock, group)
        except RuntimeError as error:  # no memory for the values alone
            self._leave_out(job, EVERYONE, in_one_line(error))
            return []
        comparison.warm_up(self._settings.effort)
        for _ in range(self._settings.effort.rounds):
            comparison.round()
        for contestant in group:
            if contestant.name in comparison.failed:
                self._leave_out(job, contestant.name, comparison.failed[contestant.name])
                self.red |= contestant.ours
        assert self._roofline.copy is not None, "it is sampled before every list"
        return comparison.results(self._roofline.copy.median)

    def _leave_out(self, job: Job, contestant: str, reason: str) -> None:
        entry = LeftOut(job.params.name, contestant, dtype_name(job.dtype), reason)
        self._left_out.append(entry)


@contextmanager
def _alarm(minutes: float | None) -> Iterator[None]:
    """Raises OutOfTime within, wherever the program is, a little before the minutes are over."""

    def ring(*_: object) -> None:
        raise OutOfTime

    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    seconds = max(60 * minutes - SECONDS_TO_FINISH, 1e-3)
    signal.setitimer(signal.ITIMER_REAL, seconds, SECONDS_TO_RING_AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
