"""What the commands print: lines, tables and progress; prettier with rich.

Without a terminal (a log file, a pipe) progress is a line every few seconds instead of a bar.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from .extras import installed

REPORTS = 4  # lines of progress per task where no bar can move,
LONGEST_SILENCE = 4.0  # and one more wherever this many seconds pass without a line

Advance = Callable[[int, str], None]
"""Call it with the units of work done so far and a few words on how it goes."""


class Console(Protocol):
    """What a command may show."""

    def line(self, text: str = "") -> None:
        """Prints ``text`` on one line, however long it is."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table."""

    def progress(
        self, task: str, total: int, reports: int = REPORTS
    ) -> AbstractContextManager[Advance]:
        """Shows how far ``task`` is, of ``total`` units; without a bar in ``reports`` lines."""


def open_console() -> Console:
    """The prettier console if rich is installed, else the plain one."""
    return RichConsole() if installed("rich") else PlainConsole()


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in plain text."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for cells in (columns, ["-" * width for width in widths], *rows):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


class PlainConsole:
    """The standard library alone."""

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for line in aligned(columns, rows):
            self.line(line)

    @contextmanager
    def progress(self, task: str, total: int, reports: int = REPORTS) -> Iterator[Advance]:
        every, last = max(1, total // reports), time.monotonic()

        def advance(done: int, words: str) -> None:
            nonlocal last
            if done % every == 0 or time.monotonic() - last > LONGEST_SILENCE:
                self.line(f"{task}  {done}/{total}  {words}")
                last = time.monotonic()

        yield advance


class RichConsole(PlainConsole):
    """With rich: boxes, colours, and bars where there is a terminal."""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.box import ROUNDED
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        table = Table(box=ROUNDED, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Terminal().print(table)

    @contextmanager
    def progress(self, task: str, total: int, reports: int = REPORTS) -> Iterator[Advance]:
        if not sys.stdout.isatty():
            with super().progress(task, total, reports) as advance:
                yield advance
            return

        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
        ) as bars:
            bar = bars.add_task(task, total=total, words="")
            yield lambda done, words: bars.update(bar, completed=done, words=words)
