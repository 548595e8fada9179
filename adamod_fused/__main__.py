"""The command line: ``python -m adamod_fused`` and ``demo``, ``doctor`` or ``report``."""

from __future__ import annotations

import argparse
import sys
from typing import cast

from adamod_fused import doctor
from adamod_fused.demo import cli as demo
from adamod_fused.report import cli as report


def main() -> int:
    """Runs the command that the arguments name and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adamod_fused",
        description="Run the demo, list working backends, or draw a report of a run.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo.add_command(commands)
    doctor.add_command(commands)
    report.add_command(commands)
    arguments = parser.parse_args()
    try:
        return cast(int, arguments.main(arguments))
    except KeyboardInterrupt:
        return 130  # what a shell reports for a program that Ctrl-C ended


if __name__ == "__main__":
    sys.exit(main())
