"""Runs one of examples/ without a network: as it stands, and spoiled, when it must fail.

Run by test_examples.py in a process of its own; the last line is JSON, what each run ended with.
All in one process, because importing the trainers takes longer than the examples.
"""

import itertools
import json
import os
import runpy
import socket
import sys
import warnings

from adamod_fused import AdaMod

init, made = AdaMod.__init__, itertools.count()


def refuse(connection: socket.socket, address: object) -> None:
    raise OSError(f"an example wants a network: {address}")


def stand_still(self, closure=None):
    return closure() if closure is not None else None


def differ(self, *args, lr, **options):
    """A little more lr for every optimizer but the first: for examples that compare bits."""
    init(self, *args, lr=lr * (1 + 1e-3 * next(made)), **options)


def outcome(path: str) -> str:
    try:
        runpy.run_path(path, run_name="__main__")
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        return f"{type(error).__name__}: {error}"
    return "passed"


def main(path: str) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    socket.socket.connect = refuse
    sys.argv = [path]  # without arguments, which are optional
    step = AdaMod.step
    outcomes = {"as it stands": outcome(path)}
    AdaMod.step = stand_still
    warnings.simplefilter("ignore")
    outcomes["stand still"] = outcome(path)
    AdaMod.step = step
    AdaMod.__init__ = differ
    outcomes["differ"] = outcome(path)
    print(json.dumps(outcomes))


main(sys.argv[1])
