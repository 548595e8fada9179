"""The run of the trials: each held to the reference's bits, then timed beside the default."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from adamod_fused.backends import Backend
from adamod_fused.backends.base import dtype_name
from adamod_fused.console import Console
from adamod_fused.formats import PLAIN, Formats

from .. import gate, machine
from ..clocks import Clock
from ..contestants import Contestant, written
from ..lists import LISTS, ParamList
from ..measure import Comparison, Effort, groups, in_one_line
from ..roofline import Roofline
from ..run import OutOfTime
from .declared import DEFAULT, Trial
from .findings import Findings, Timing, Variant
from .variants import contestant


class Job(NamedTuple):
    """A list and dtype to measure, and the formats that all its tensors are in."""

    params: ParamList
    dtype: torch.dtype
    formats: Formats = PLAIN

    def __str__(self) -> str:
        return " ".join((self.params.name, dtype_name(self.dtype), *written(self.formats)))


# What matters most comes first, as time may run out.
JOBS = (
    Job(LISTS["gpt2-124m"], torch.float32),
    Job(LISTS["single-1g"], torch.float32),
    Job(LISTS["small-10000"], torch.float32),
    Job(LISTS["gpt2-124m"], torch.bfloat16),
    Job(LISTS["single-1g"], torch.float32, Formats("8bit")),
    Job(LISTS["gpt2-124m"], torch.bfloat16, Formats("8bit", "split")),
)
EFFORT = Effort(seconds=2, rounds=5, most=20)

# Tables by value and by address; less than a vector, whole chunks and what is left of them.
GATE_SHAPES = (((1,), (3,), (257,), (1_000_003,), (1 << 16,)), ((7,),) * 600)


class TrialsRun:
    """A run under way.

    Args:
        baseline: measured beside all variants.
        seconds: after which to stop, give or take a round.
        path: of the record, which is written again after every round: whatever ends the process,
            no more is lost than one.
    """

    def __init__(
        self,
        clock: Clock,
        baseline: Contestant,
        console: Console,
        seconds: float,
        jobs: Sequence[Job],
        path: Path,
    ) -> None:
        self.red = False
        """Whether a variant failed: to build, at the gate, or while it was timed."""
        self.jobs = jobs
        self._clock, self._baseline, self._console = clock, baseline, console
        self._end = time.monotonic() + seconds
        self._roofline = Roofline(clock)
        self.findings = Findings(
            {
                "date": machine.date(),
                "machine": machine.machine(clock.device),
                "versions": machine.versions([baseline.package]),
            },
            path,
        )

    def take(self, backend: str, trial: Trial) -> Variant:
        """Takes down a variant."""
        variant = Variant(backend, *trial)
        self.findings.variants.append(variant)
        return variant

    def fail(self, variant: Variant, reason: str) -> None:
        """Takes down why a variant is not timed, or no further."""
        self.red = True
        variant.left_out = reason
        self.findings.save()
        self._console.line(f"{variant.backend}, {variant.name}: {reason}")

    def measure(self, candidates: Sequence[tuple[Variant, Backend]]) -> None:
        """Gates and times variants of one backend, the default first.

        Raises:
            OutOfTime: not all could be timed; what was found is kept.
        """
        admitted = {}
        for variant, backend in candidates:
            reason = self._red_gate(variant, backend)
            if reason is None:
                admitted[variant.name] = (variant, backend)
            else:
                self.fail(variant, reason)
        if DEFAULT not in admitted:
            return  # nothing to compare with
        backend_name = admitted[DEFAULT][0].backend
        with self._console.progress(f"{backend_name} trials", len(self.jobs)) as advance:
            for done, job in enumerate(self.jobs, start=1):
                self._check_time()
                try:
                    self._roofline.sample()
                    self._compare(admitted, job)
                except (MemoryError, RuntimeError) as error:  # the other lists may fare better
                    self.red = True
                    self.findings.left_out[f"{backend_name}, {job}"] = in_one_line(error)
                advance(done, str(job))

    def _red_gate(self, variant: Variant, backend: Backend) -> str | None:
        """What of a variant is not as the reference has it."""
        for dtype, formats in sorted({job[1:] for job in self.jobs}, key=str):
            found = contestant(variant.name, backend, formats)
            for shapes in GATE_SHAPES:
                self._check_time()
                try:
                    words = gate.differs(found, shapes, dtype, self._clock.device)
                except Exception as error:  # noqa: BLE001 - of a variant; the others go on
                    words = in_one_line(error)
                if words is not None:
                    stored = " ".join((dtype_name(dtype), *written(formats)))
                    return f"red gate, {stored}: {words}"
        return None

    def _compare(self, admitted: dict[str, tuple[Variant, Backend]], job: Job) -> None:
        copied = self._roofline.copy
        assert copied is not None, "it was sampled"
        self.findings.facts["copy_GB_per_s"] = asdict(copied)
        variants = (
            contestant(variant.name, backend, job.formats) for variant, backend in admitted.values()
        )
        contestants = [self._baseline, *variants]
        for params, group in self._together(contestants, job):
            self._check_time()
            comparison = Comparison(params, job.dtype, self._clock, group)
            comparison.warm_up(EFFORT)
            for _ in range(EFFORT.rounds):
                comparison.round()
                if self._baseline.name in comparison.failed:
                    raise RuntimeError(comparison.failed[self._baseline.name])
                for result in comparison.results(copied.median):
                    if result.contestant != self._baseline.name:
                        variant, _ = admitted[result.contestant]
                        variant.timings[str(job)] = Timing.of(result)
                self.findings.save()
                if self._is_over():
                    break
            for name, words in comparison.failed.items():
                self.fail(admitted[name][0], f"{job}: {words}")
            del comparison
            gc.collect()

    def _together(
        self, contestants: Sequence[Contestant], job: Job
    ) -> Iterator[tuple[ParamList, list[Contestant]]]:
        """Those that fit in memory at once, on the list or, where none do, on half of it."""
        params = job.params
        while True:
            try:
                for group in groups(contestants, params, job.dtype, self._clock):
                    yield params, group
                return
            except MemoryError:
                if params.tensors > 1:
                    raise
                half = params.numel // 2
                params = ParamList(f"single-{half}", ((half,),), "made up: as large as fits")

    def _is_over(self) -> bool:
        return time.monotonic() > self._end

    def _check_time(self) -> None:
        if self._is_over():
            raise OutOfTime
