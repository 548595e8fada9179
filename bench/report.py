"""What a run found, on the terminal: a table for each list, the fits, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from textwrap import shorten
from typing import NamedTuple

from adamod_fused.console import Console

from .contestants import BASELINE
from .fits import SWEEPS
from .record import Fit, Record, Result, Spread

OURS = "adamod_fused "  # so the names of ours begin


LONGEST_REASON = 300  # characters; the record holds all


class Column(NamedTuple):
    """A column of the table of a list; it is left out where all its cells are empty."""

    head: str
    cell: Callable[[Result], str]


def three_digits(number: float | None) -> str:
    """Three digits, and no exponent; nothing for None."""
    if number is None:
        return ""
    decimals = 2 - math.floor(math.log10(abs(number))) if number else 0
    return f"{number:,.{max(0, decimals)}f}"


def _notes(result: Result) -> str:
    """What a reader of the step's time must know of it."""
    notes = {"host in step": result.host_in_step, "in cache": result.in_cache}
    return ", ".join(note for note, applies in notes.items() if applies)


def _median(spread: Spread | None) -> str:
    return three_digits(spread.median) if spread else ""


COLUMNS = (
    Column("contestant", lambda r: r.contestant),
    Column("step ms", lambda r: three_digits(r.step_ms.median)),
    Column("q1 to q3", lambda r: f"{three_digits(r.step_ms.q1)} to {three_digits(r.step_ms.q3)}"),
    Column("x Adam", lambda r: f"{r.over_adam:.2f}" if r.over_adam else ""),
    Column("GB/s", lambda r: three_digits(r.GB_per_s)),
    Column("of copy", lambda r: f"{r.share_of_copy:.0%}"),
    Column("B/param", lambda r: three_digits(r.bytes_per_param)),
    Column("state B", lambda r: three_digits(r.state_bytes_per_param)),
    Column("host us", lambda r: _median(r.host_us)),
    Column("a tensor", lambda r: three_digits(r.host_us_per_tensor)),
    Column("wall us", lambda r: _median(r.wall_us)),
    Column("launches", lambda r: f"{r.launches:,}" if r.launches else ""),
    Column("peak MiB", lambda r: three_digits(r.peak_bytes / (1 << 20)) if r.peak_bytes else ""),
    Column("notes", _notes),
)
LEGEND = (
    "x Adam: a step over one of torch's fused Adam just before, median over rounds; GB/s: every "
    "stream of parameters, gradients and states once; of copy: that over a copy's, which on a CPU "
    "it may exceed (roofline.py); "
    "B/param: bytes moved, state B: bytes of state per parameter; a tensor: host time per "
    "tensor; host in step: the step's time holds the host's, as no sleep held the GPU's queue; in "
    "cache: the GPU's may hold all that a step needs"
)


def headline(what: str, results: Sequence[Result]) -> str:
    """One line on a list that was just measured: ours, and the baseline."""
    told = [
        f"{r.contestant} {three_digits(r.step_ms.median)} ms"
        for r in results
        if r.contestant.startswith(OURS) or r.contestant == BASELINE
    ]
    return f"{what}: {', '.join(told) or 'neither ours nor the baseline'}"


def print_record(console: Console, record: Record) -> None:
    """Tables of the lists, the fastest first; of the sweeps, whose lists are many, the fits."""
    for key in dict.fromkeys((result.list, result.dtype) for result in record.results):
        if not key[0].startswith(tuple(SWEEPS.values())):
            _print_list(console, record, *key)
    console.line(LEGEND)
    copy, in_place = _median(record.copy_GB_per_s), _median(record.in_place_GB_per_s)
    console.line(f"memory: a copy {copy or '-'} GB/s, a pass in place {in_place or '-'} GB/s")
    _print_fits(console, record.fits)
    _print_missing(console, record)
    console.line(describe(record))


class Limit(NamedTuple):
    """What is held to be the memory's speed on a device: see roofline.py."""

    name: str
    gb_per_s: float


def memory_limit(record: Record) -> Limit | None:
    """What figures draw as the limit; None where it was not measured.

    On a GPU the median of the copies, on a CPU the fastest pass in place, as STREAM takes the best
    of its runs: on a virtual machine the pages that a buffer happens to get may halve its speed.
    """
    if record.device == "cuda":
        copy = record.copy_GB_per_s
        return Limit("a copy", copy.median) if copy else None
    in_place = record.in_place_GB_per_s
    return Limit("the fastest pass in place", in_place.max) if in_place else None


def describe(record: Record) -> str:
    """Machine, software, commit and date in one line."""
    name = record.machine.get("gpu" if record.device == "cuda" else "cpu", "unknown machine")
    threads = "" if record.device == "cuda" else f", threads: {record.machine.get('threads')}"
    torch = record.versions.get("torch", "unknown")
    commit = record.commit or "unknown"
    short_commit = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    return f"{name}{threads}, torch {torch}, {record.date[:10]}, commit {short_commit}"


def _print_list(console: Console, record: Record, name: str, dtype: str) -> None:
    results = [r for r in record.results if (r.list, r.dtype) == (name, dtype)]
    # By the ratio, since contestants that did not fit in memory together met different hours.
    results.sort(key=lambda r: (r.over_adam or r.step_ms.median, r.step_ms.median))
    facts = record.lists[name]
    console.line()
    console.line(f"{name}, {dtype}: {facts.tensors:,} tensors, {facts.elements:,} elements")
    filled = [column for column in COLUMNS if any(map(column.cell, results))]
    console.table(
        [column.head for column in filled],
        [[column.cell(result) for column in filled] for result in results],
    )


def _print_fits(console: Console, fits: Iterable[Fit]) -> None:
    rows = [
        (
            fit.contestant,
            fit.dtype,
            fit.against,
            three_digits(fit.slope_ns),
            three_digits(fit.intercept_us),
            f"{fit.r_squared:.4f}",
        )
        for fit in sorted(fits, key=lambda fit: fit.against)
    ]
    if rows:
        console.line()
        console.line("cost of a step = slope x size + intercept, fitted to the sweeps")
        console.table(
            ("contestant", "dtype", "against", "slope ns", "intercept us", "r squared"), rows
        )


def _print_missing(console: Console, record: Record) -> None:
    lists: dict[tuple[str, str], list[str]] = {}
    for entry in record.left_out:
        lists.setdefault((entry.contestant, entry.reason), []).append(f"{entry.list} {entry.dtype}")
    console.line()
    for name, reason in record.absent.items():
        console.line(f"absent: {name}: {shorten(reason, LONGEST_REASON)}")
    for (contestant, reason), names in lists.items():
        reason = shorten(reason, LONGEST_REASON)
        console.line(f"left out: {contestant} on {', '.join(names)}: {reason}")
