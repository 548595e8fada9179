"""The command line: ``data`` fetches, ``run`` trains, ``report`` judges, draws and writes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adamod_fused.console import Console, open_console

from ..record import RESULTS
from . import figures, page, plan, record, run
from .claims import CLAIMS
from .files import UnreadableFileError
from .settings import SCALES

DESCRIPTION = (
    "Put the claims of the AdaMod paper to the test on real data: fetch it (data), train (run), "
    "judge, draw and write (report). Without a command: all three. Finished runs are kept in "
    ".paper and not run again. Exit code: 2 for what one line tells, 130 after Ctrl-C."
)
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the commands that the arguments name and returns the exit code."""
    given = _parser().parse_args(arguments)
    console = open_console()
    commands = [given.command] if given.command else list(COMMANDS)
    try:
        if "run" in commands:
            _check(given)
        for command in commands:
            COMMANDS[command](given, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (OSError, UnreadableFileError) as error:
        given.parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=DESCRIPTION)
    parser.set_defaults(parser=parser)
    parser.add_argument("command", nargs="?", choices=COMMANDS, help="default: all of them")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--only",
        action="append",
        choices=plan.EXPERIMENTS,
        metavar="NAME",
        help=f"an experiment, of {', '.join(plan.EXPERIMENTS)}; may be given again; default: all",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="of the record and figures"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=run.CACHE,
        metavar="DIR",
        help="of data and finished runs; default: %(default)s",
    )
    return parser


@contextmanager
def _bad_input(given: argparse.Namespace) -> Iterator[None]:
    """Errors that are the caller's or the machine's: one line, and exit code 2."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        given.parser.error(str(error))


def _check(given: argparse.Namespace) -> None:
    """Finds now what would fail after downloads, or after hours."""
    if SCALES[given.scale].device == "cuda" and not torch.cuda.is_available():
        given.parser.error(f"--scale {given.scale} needs CUDA, and torch finds none here")
    given.out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=given.out).close()  # raises where nothing can be written


def _data(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    with _bad_input(given):
        facts = run.prepare(given.cache, SCALES[given.scale], console.line)
    console.line(f"pairs: {facts['pairs']['pairs']}")
    return facts


def _run(given: argparse.Namespace, console: Console) -> None:
    """Ends with a record of all that is finished, also when interrupted."""
    scale = SCALES[given.scale]
    data = _data(given, console)
    kept = run.Kept.of(given.scale, scale, given.cache)
    chosen = plan.runs(given.only or plan.EXPERIMENTS, scale)
    try:
        run.perform_all(chosen, kept, given.cache, console)
    except BaseException:
        try:
            _save(given, data, kept, console)
        except (OSError, UnreadableFileError) as error:  # the first error is the one to raise
            console.line(f"record: not saved: {error}")
        raise
    _save(given, data, kept, console)


def _save(
    given: argparse.Namespace, data: dict[str, Any], kept: run.Kept, console: Console
) -> None:
    """Replaces no record that holds more runs: it may be the committed one."""
    runs = kept.finished(plan.runs(plan.EXPERIMENTS, kept.scale))
    path = record.path_of(given.scale, given.out)
    before = _runs_in(path)
    if before > len(runs):
        console.line(
            f"record: {path} stays: it holds {before} runs, and {len(runs)} are finished here"
        )
    elif not runs:
        console.line("record: none, as no run is finished")
    else:
        record.Record(record.gather(given.scale, kept.scale, runs, data)).save(path)
        console.line(f"record: {path}")


def _runs_in(path: Path) -> int:
    """How many a record holds; none if it cannot be read."""
    try:
        return len(record.Record.load(path).data["runs"])
    except (OSError, ValueError):
        return 0


def _report(given: argparse.Namespace, console: Console) -> None:
    path = record.path_of(given.scale, given.out)
    with _bad_input(given):
        found = record.Record.load(path)
    if not found.data["runs"]:
        given.parser.error(
            f"{path}: the record holds no runs; `python -m bench.paper run` makes them"
        )
    for figure in figures.draw(found, given.out):
        console.line(f"figure: {figure}")
    for name in found.experiments():
        finding = CLAIMS[name].find(found)
        console.line(f"\n{CLAIMS[name].claim}  {finding.verdict.upper()}")
        console.table(finding.columns, finding.rows)
    # The documentation is of the committed records; another folder has a page of its own.
    folder = page.DOCS if given.out.resolve() == RESULTS else given.out
    target = folder / page.name_of_page(given.scale)
    target.write_text(page.page(found))
    console.line(f"page: {target}")


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], object]] = {
    "data": _data,
    "run": _run,
    "report": _report,
}

if __name__ == "__main__":
    sys.exit(main())
