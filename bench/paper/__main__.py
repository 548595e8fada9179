"""The command line: ``data`` fetches, ``run`` trains, ``report`` judges, draws and writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adamod_fused.console import Console, open_console

from ..record import RESULTS
from . import figures, page, plan, record, run
from .claims import CLAIMS
from .settings import SCALES

DESCRIPTION = (
    "Put the claims of the AdaMod paper to the test on real data: fetch it (data), train (run), "
    "judge, draw and write (report). Without a command: all three. Finished runs are kept in "
    ".paper and not run again. Exit code: 130 after Ctrl-C."
)
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the commands that the arguments name and returns the exit code."""
    given = _parser().parse_args(arguments)
    console = open_console()
    try:
        for command in [given.command] if given.command else COMMANDS:
            COMMANDS[command](given, console)
    except KeyboardInterrupt:
        return INTERRUPTED
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
    finally:
        every = plan.runs(plan.EXPERIMENTS, scale)
        found = record.gather(given.scale, scale, kept.finished(every), data)
        given.out.mkdir(parents=True, exist_ok=True)
        path = record.path_of(given.scale, given.out)
        record.Record(found).save(path)
        console.line(f"record: {path}")


def _report(given: argparse.Namespace, console: Console) -> None:
    with _bad_input(given):
        found = record.Record.load(record.path_of(given.scale, given.out))
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
