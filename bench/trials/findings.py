"""What the trials found: as dataclasses, as the JSON record, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adamod_fused.console import Console

from ..record import Result, Spread, rounded, save_json
from .declared import DEFAULT

SCHEMA = 1
CUT_OFF = "it was killed, or is still running"


@dataclass(frozen=True)
class Timing:
    """A variant on a list, which is smaller than that of its job where memory is short."""

    list: str
    step_ms: Spread
    host_us: Spread | None
    share_of_copy: float
    over_adam: float
    in_cache: bool | None
    """Whether steps may find their tensors in the L2 cache, as all of them fit in it."""

    @classmethod
    def of(cls, result: Result) -> Timing:
        assert result.over_adam is not None, "the baseline is measured beside every variant"
        return cls(
            result.list,
            result.step_ms,
            result.host_us,
            result.share_of_copy,
            result.over_adam,
            result.in_cache,
        )


@dataclass
class Variant:
    """A trial and what was found of it."""

    backend: str
    name: str
    changes: dict[str, int | bool]
    prediction: str
    registers: dict[str, int] = field(default_factory=dict)
    """Of the CUDA kernels, by storage and table."""
    left_out: str | None = None
    """Why it was not timed, or not to the end."""
    timings: dict[str, Timing] = field(default_factory=dict)
    """By list and dtype, as a job writes them."""


class Findings:
    """All variants of a run."""

    def __init__(self, facts: dict[str, Any], path: Path) -> None:
        self.path = path
        self.facts = facts
        """Of the machine and the run; they go into the record as they are."""
        self.variants: list[Variant] = []
        self.left_out: dict[str, str] = {}
        """Lists that could not be measured, and why."""

    def find(self, backend: str, name: str) -> Variant | None:
        return next((v for v in self.variants if (v.backend, v.name) == (backend, name)), None)

    def over_default(self, variant: Variant, job: str) -> float | None:
        """The step over that of the default on the same backend, list and dtype.

        Both are taken over the baseline's, which is measured beside each of them.
        """
        default = self.find(variant.backend, DEFAULT)
        if default is None or job not in default.timings or job not in variant.timings:
            return None
        return rounded(variant.timings[job].over_adam / default.timings[job].over_adam)

    def save(self, stopped: str | None = CUT_OFF) -> None:
        """Writes the record; ``stopped`` says what kept the run from its end, None for nothing."""
        variants = [asdict(variant) for variant in self.variants]
        for variant, data in zip(self.variants, variants, strict=True):
            for job, timing in data["timings"].items():
                timing["over_default"] = self.over_default(variant, job)
        record = {"schema": SCHEMA, "stopped": stopped, **self.facts}
        record |= {"left_out": self.left_out, "variants": variants}
        save_json(record, self.path)

    def print(self, console: Console, jobs: Sequence[str]) -> None:
        """A row for each variant: its time over the default's on each list."""
        rows = []
        for variant in self.variants:
            cells = [self._cell(variant, job) for job in jobs]
            rows.append((variant.backend, variant.name, *cells))
        console.table(("backend", "trial", *jobs), rows)
        for job, reason in self.left_out.items():
            console.line(f"{job}: {reason}")
        console.line(
            "time on the device over the default's; of the default, share of the copy's GB/s, and "
            "whether its tensors stay in the cache"
        )

    def _cell(self, variant: Variant, job: str) -> str:
        if job not in variant.timings:
            return "-"
        if variant.name == DEFAULT:
            timing = variant.timings[job]
            cached = ", in cache" if timing.in_cache else ""
            return f"{timing.step_ms.median:.3g} ms, {timing.share_of_copy:.1%}{cached}"
        over = self.over_default(variant, job)
        return "-" if over is None else f"{over:.3f}"
