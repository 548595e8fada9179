"""``python -m adamod_fused report RUN_DIR``: reads a run's log, writes the page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import extras
from ..console import open_console
from ..files import write_whole
from . import series

DESCRIPTION = (
    "Write one HTML page about RUN_DIR/bound_stats.jsonl, which adamod_fused.tracking.RunLog "
    "writes: loss, the learning rates Adam would have used beside those that AdaMod used, what the "
    "bound held back in each tensor, dead elements, norms. The page needs no network."
)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares ``report`` and its options."""
    parser = commands.add_parser(
        "report", help="draw what the bound did in a run, as one HTML page", description=DESCRIPTION
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the folder of a run")
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        type=Path,
        help="where the page goes (default: report.html in RUN_DIR)",
    )
    parser.set_defaults(main=main, parser=parser)


def main(arguments: argparse.Namespace) -> int:
    """Writes the page; returns 0."""
    out = arguments.out or arguments.run_dir / "report.html"
    try:
        extras.require_plotly()
        run = series.load(arguments.run_dir)
        from .page import page

        text = page(run, _shown(Path(arguments.run_dir.resolve().name)))
    except (OSError, RuntimeError, ValueError) as error:
        arguments.parser.error(str(error))
    try:
        write_whole(text, out)
    except OSError as error:
        arguments.parser.error(
            f"cannot write {out} ({error.strerror}); name a place for the page with -o FILE"
        )
    open_console().line(f"report: {_shown(out.resolve())}")
    return 0


def _shown(path: Path) -> str:
    """``path`` with a mark for each byte that is not UTF-8, which no page and no pipe takes."""
    return os.fsencode(path).decode(errors="replace")
