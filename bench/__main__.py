"""The command line: ``python -m bench`` measures, ``figures`` draws, ``check`` judges records."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from adamod_fused.console import Console, PlainConsole, open_console
from adamod_fused.extras import installed

from . import check, figures, plan, record, report
from .clocks import Clock, CpuClock
from .contestants import NAMES, SLOW_START
from .cuda_clock import CudaClock
from .run import CTRL_C, BenchmarkRun, NothingToMeasureError, Settings

DESCRIPTION = (
    "Measure adamod_fused beside every other optimizer that is installed, on the parameter lists "
    "of real models; before each list ours has to equal its reference on it, bit for bit. Prints "
    "tables, writes bench-DEVICE.json and figures. Exit code: 1 if a bit differs, 130 after "
    "Ctrl-C; what was measured until then is written all the same."
)
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
QUICK_MINUTES = 1.0
DEVICES = ("cpu", "cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name and returns its exit code."""
    given = _parser().parse_args(arguments)
    # Where there is no terminal rich would fold wide tables.
    console = open_console() if sys.stdout.isatty() else PlainConsole()
    command: Callable[[argparse.Namespace, Console], int] = given.command
    try:
        return command(given, console)
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=DESCRIPTION)
    parser.set_defaults(command=_measure, parser=parser)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=DEVICES, default=default, help="default: %(default)s")
    parser.add_argument(
        "--lists", type=_names("list", plan.catalogue()), metavar="A,B", help="default: all"
    )
    parser.add_argument(
        "--contestants", type=_names("contestant", NAMES), metavar="A,B", help="default: all"
    )
    parser.add_argument(
        "--dtypes",
        type=_names("dtype", plan.DTYPES),
        metavar="A,B",
        help=f"of the parameters; default: {','.join(plan.DEFAULT_DTYPES)}, but for sweeps, and "
        "with --quick for all lists, the first alone",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a look: fewer lists, less time for each, a minute at most",
    )
    parser.add_argument(
        "--minutes", type=_minutes, metavar="M", help="stop by then, and write what there is"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/bench"),
        metavar="FOLDER",
        help="default: %(default)s",
    )
    parser.add_argument("--commit", help="of these sources, where there is no repository")

    commands = parser.add_subparsers(metavar="COMMAND")
    drawing = commands.add_parser("figures", help="draw the figures of a record")
    drawing.add_argument("record", type=Path, metavar="RECORD")
    drawing.add_argument("--out", type=Path, metavar="FOLDER", help="default: the record's")
    drawing.set_defaults(command=_draw, parser=drawing)
    checking = commands.add_parser(
        "check", help="hold records to the targets; exit 1: one is short"
    )
    checking.add_argument(
        "records", type=Path, nargs="*", metavar="RECORD", help="default: all in bench/results"
    )
    checking.set_defaults(command=_check, parser=checking)
    return parser


@contextmanager
def _bad_input(given: argparse.Namespace) -> Iterator[None]:
    """Errors that are the caller's: one line, and exit code 2."""
    try:
        yield
    except (NothingToMeasureError, OSError, ValueError) as error:
        given.parser.error(str(error))


def _measure(given: argparse.Namespace, console: Console) -> int:
    with _bad_input(given):
        settings = _settings(given)
        settings.out.mkdir(parents=True, exist_ok=True)
    on_gpu = settings.device.type == "cuda"
    clock: Clock = CudaClock(settings.device) if on_gpu else CpuClock()
    run = BenchmarkRun(settings, clock, console)
    try:
        stopped = run.go()
    except NothingToMeasureError as error:
        given.parser.error(str(error))
    found = run.save(complete=stopped is None)
    report.print_record(console, found)
    if stopped:
        console.line(stopped)
    console.line(f"record: {settings.path.resolve()}")
    _draw_figures(found, settings.path, settings.out, console)
    if stopped == CTRL_C:
        return INTERRUPTED
    return 1 if run.red else 0


def _settings(given: argparse.Namespace) -> Settings:
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch can use no GPU here, so --device must be cpu, got cuda")
    names = given.dtypes or plan.DEFAULT_DTYPES[: 1 if given.quick else None]
    dtypes = [plan.DTYPES[name] for name in names]
    left_out: dict[str, str] = {}
    if given.quick and not given.contestants:
        left_out = {name: f"left out of --quick: {reason}" for name, reason in SLOW_START.items()}
    return Settings(
        device=torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu"),
        jobs=plan.jobs(given.device, dtypes, given.lists or (), given.quick),
        effort=plan.effort(given.device, given.quick),
        contestants=given.contestants or [name for name in NAMES if name not in left_out],
        absent=left_out,
        patient=bool(given.contestants),
        quick=given.quick,
        minutes=given.minutes or (QUICK_MINUTES if given.quick else None),
        commit=given.commit,
        out=given.out,
    )


def _draw(given: argparse.Namespace, console: Console) -> int:
    out = given.out or given.record.parent
    with _bad_input(given):
        found = record.load(given.record)
        out.mkdir(parents=True, exist_ok=True)
    return 0 if _draw_figures(found, given.record, out, console) else 2


def _check(given: argparse.Namespace, console: Console) -> int:
    with _bad_input(given):
        return check.check(given.records, console)


def _draw_figures(found: record.Record, path: Path, out: Path, console: Console) -> bool:
    """Whether it could; a line says what was drawn, or what is missing."""
    if not installed("matplotlib"):
        console.line(
            "no figures: matplotlib is missing: pip install matplotlib; then "
            f"python -m bench figures {path}"
        )
        return False
    for figure in figures.draw(found, out):
        console.line(f"figure: {figure.resolve()}")
    return True


def _names(kind: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """Parses names with commas between them, all of them known."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"no {kind} is called {name!r}; there are {', '.join(known)}"
                )
        return list(dict.fromkeys(names))

    return parse


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
