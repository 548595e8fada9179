"""The command line: ``data`` fetches, ``run`` trains, ``report`` judges, draws and writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adamod_fused.console import Console, open_console

from ..record import RESULTS
from . import figures, page, plan, record, run
from .claims import CLAIMS
from .settings import SCALES

DESCRIPTION = (
    "Put the claims of the AdaMod paper to the test on real data. Without a command: data, run "
    "and report. Finished runs are kept in .paper and not run again. Exit code: 130 after Ctrl-C."
)
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
COMMANDS = ("data", "run", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the commands that the arguments name and returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    console = open_console()
    wanted = [given.command] if given.command else COMMANDS
    try:
        if "data" in wanted:
            facts = run.prepare(given.cache, SCALES[given.scale], console.line)
            console.line(f"pairs: {facts['pairs']['pairs']}")
        if "run" in wanted:
            _run(given, console)
        if "report" in wanted:
            _report(given, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RuntimeError, OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=DESCRIPTION)
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


def _run(given: argparse.Namespace, console: Console) -> None:
    """Ends with a record of all that is finished, also when interrupted."""
    scale = SCALES[given.scale]
    data = run.prepare(given.cache, scale, console.line)
    folder = run.folder_of(given.scale, given.cache)
    chosen = plan.runs(given.only or plan.EXPERIMENTS, scale)
    try:
        run.perform_all(chosen, scale, given.cache, folder, console)
    finally:
        every = plan.runs(plan.EXPERIMENTS, scale)
        found = record.gather(given.scale, scale, run.finished(every, scale, folder), data)
        given.out.mkdir(parents=True, exist_ok=True)
        path = record.path_of(given.scale, given.out)
        record.Record(found).save(path)
        console.line(f"record: {path}")


def _report(given: argparse.Namespace, console: Console) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
