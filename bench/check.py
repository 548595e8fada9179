"""Holds records to the targets, and says which fall short: `make bench-check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from adamod_fused.console import Console

from . import host, saving, tracking
from .record import RESULTS, Record, load
from .report import describe
from .targets import TARGETS, NotMeasuredError, Target

OTHERS: dict[str, ModuleType] = {"host": host, "saving": saving, "tracking": tracking}
"""Modules that make records of another kind, each for a target of its own; names of their files."""


class Verdict(NamedTuple):
    """A target and what a record says to it; ``reason`` where it says nothing."""

    target: Target | host.HostTarget
    figure: float | None
    reason: str = ""
    caveat: str = ""
    """Why the record is no proof: it is quick, or incomplete."""

    @property
    def falls_short(self) -> bool:
        return self.figure is not None and not self.target.met(self.figure)

    def __str__(self) -> str:
        if self.figure is None:
            return f"not measured: {self.reason}"
        verdict = "SHORT" if self.falls_short else "met"
        return f"{verdict} ({self.caveat})" if self.caveat else verdict


def judge(target: Target, record: Record) -> Verdict:
    """Holds a record of the target's device to the target."""
    try:
        return Verdict(target, target.figure(record), caveat=caveat(record))
    except NotMeasuredError as error:
        return Verdict(target, None, str(error))


def caveat(record: Record) -> str:
    """Why what a record says is no proof, in a word or two; nothing for a whole run's."""
    words = {"quick": record.quick, "incomplete": not record.complete}
    return ", ".join(word for word, applies in words.items() if applies)


def check(paths: Sequence[Path], console: Console) -> int:
    """Prints every target with what the records say; returns 1 if one falls short, else 0.

    Args:
        paths: records of the benchmark; none stands for all in ``RESULTS``, those of OTHERS too.
        console: where it is printed.

    Raises:
        OSError, ValueError: a record cannot be read, or is none.
    """
    found = [(path, load(path)) for path in paths or sorted(RESULTS.glob("bench-*.json"))]
    verdicts: list[Verdict] = []
    unmeasured = 0  # for want of any record
    for path, record in found:
        console.line(", ".join(filter(None, (f"{path.name}: {describe(record)}", caveat(record)))))
        mine = [judge(target, record) for target in TARGETS if target.device == record.device]
        _print(console, mine)
        verdicts += mine
    for name, kind in OTHERS.items():
        kind_paths = [] if paths else sorted(RESULTS.glob(f"{name}-*.json"))
        for path, other in ((path, kind.load(path)) for path in kind_paths):
            console.line(f"{path.name}: {other.commit}, {other.date}")
            mine = [Verdict(kind.TARGET, kind.TARGET.figure(other))]
            _print(console, mine)
            verdicts += mine
        if not kind_paths:
            reason = f"no record of it: python -m bench.{name} makes one"
            _print(console, [Verdict(kind.TARGET, None, reason)])
            unmeasured += 1
    for device in sorted({target.device for target in TARGETS}):
        if not any(record.device == device for _, record in found):
            reason = f"no record of a {'GPU' if device == 'cuda' else 'CPU'}"
            console.line(f"{reason}: python -m bench --device {device} makes one")
            missing = [Verdict(t, None, reason) for t in TARGETS if t.device == device]
            _print(console, missing)
            unmeasured += len(missing)
    falling_short = sum(verdict.falls_short for verdict in verdicts)
    measured = sum(verdict.figure is not None for verdict in verdicts)
    preliminary = sum(bool(verdict.caveat) for verdict in verdicts)
    console.line(
        f"{falling_short} of {measured} measured figures fall short of their targets; "
        + (f"{preliminary} are of quick or incomplete records; " if preliminary else "")
        + f"{len(verdicts) - measured + unmeasured} are not measured"
    )
    return 1 if falling_short else 0


def _print(console: Console, verdicts: Sequence[Verdict]) -> None:
    columns = ("where", "what", "target", "measured", "verdict")
    rows = []
    for verdict in verdicts:
        _, where, what, relation, bound, _ = verdict.target
        figure = "-" if verdict.figure is None else f"{verdict.figure:.4g}"
        rows.append((where, what, f"{relation} {bound:g}", figure, str(verdict)))
    console.table(columns, rows)
