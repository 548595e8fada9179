"""Takes the host time of a step on a CPU apart; `python -m bench.host` prints and records it.

A step of 1,000 tensors of 64 elements, next to all of which is the host's. The parts are timed
within whole steps, at the edges of what ``Plan`` and the backend are asked to do, so that each
finds in the caches what the parts before it left there, and all of them add up to the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from adamod_fused.backends.cpu import CpuBackend
from adamod_fused.console import Console, open_console
from adamod_fused.plan import Plan

from . import machine
from .clocks import no_garbage_collection
from .contestants import ours
from .lists import LISTS, ParamList
from .record import RESULTS, Spread, save_json
from .report import three_digits
from .schema import decode
from .work import ValuesAndGrads, Work

SCHEMA = 2
CPU = torch.device("cpu")
PARAMS = LISTS["small-1000"]
WARM_UP = 5
ROUNDS = 24  # taking turns, for a shared machine is slow for some seconds and then fast again
STEPS = 50

PARTS = {
    "refresh": "tensors checked, addresses taken down",
    "scalars": "hyperparameters made ready",
    "kernel": "the backend, with the work itself",
    "advance": "step counts and version counters",
    "rest": "torch's hook, hyperparameters checked",
    "step": "all of it",
}
GRADS = ("kept", "new")  # as after zero_grad(set_to_none=False), and as after zero_grad()


@dataclass(frozen=True)
class HostRecord(machine.Origin):
    """What a run found; times in nanoseconds a tensor."""

    list: str
    tensors: int
    elements: int
    ns_per_tensor: dict[str, dict[str, Spread]]
    """Of each of GRADS, of each of PARTS."""
    quietest_ns_per_tensor: dict[str, dict[str, float]]
    """Medians of the round whose steps were the shortest: what others do on a shared machine only
    makes a step longer."""


class HostTarget(NamedTuple):
    """As ``targets.Target``, of a record that is not the benchmark's."""

    device: str
    where: str
    what: str
    relation: str
    bound: float
    figure: Callable[[Any], float]

    def met(self, figure: float) -> bool:
        return figure <= self.bound


def above_kernel_us(record: HostRecord) -> float:
    """Of a step with new gradients, a tensor: all that is not spent in the backend."""
    parts = record.quietest_ns_per_tensor["new"]
    return (parts["step"] - parts["kernel"]) / 1e3


TARGET = HostTarget(
    "cpu",
    "CPU",
    f"{PARAMS.tensors:,} x 64: host us a tensor above the kernel",
    "<=",
    0.3,
    above_kernel_us,
)


class Edges:
    """When a step and its parts begin and end, in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._at: dict[str, tuple[float, float]] = {}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, which from here on leaves its edges under ``name``."""

        def run(*arguments: Any) -> Any:
            start = self._now()
            result = call(*arguments)
            self._at[name] = (start, self._now())
            return result

        return run

    def parts(self) -> dict[str, float]:
        """Seconds of each part of the last step."""
        (step, step_end), (refresh, refresh_end) = self._at["step"], self._at["refresh"]
        (run, run_end), (kernel, kernel_end) = self._at["run"], self._at["kernel"]
        seconds = {
            "refresh": refresh_end - refresh,
            "scalars": kernel - run,
            "kernel": kernel_end - kernel,
            "advance": run_end - kernel_end,
        }
        step_seconds = step_end - step
        return seconds | {"rest": step_seconds - sum(seconds.values()), "step": step_seconds}


@contextmanager
def watched(edges: Edges) -> Iterator[None]:
    """All steps of ours on a CPU leave their edges."""
    launcher = CpuBackend.launcher

    def timed_launcher(*arguments: Any) -> Callable[[], None]:
        return edges.timed("kernel", launcher(*arguments))

    with (
        patch.object(Plan, "refresh", edges.timed("refresh", Plan.refresh)),
        patch.object(Plan, "run", edges.timed("run", Plan.run)),
        patch.object(CpuBackend, "launcher", timed_launcher),
    ):
        yield


def measure(params: ParamList, new_grads: bool, steps: int) -> dict[str, list[float]]:
    """Nanoseconds a tensor of each part, float32, after some steps that do not count."""
    work = Work(ours("cpu"), ValuesAndGrads.make(params.shapes, torch.float32, CPU))
    work.make_grads()
    edges = Edges()
    step = edges.timed("step", work.step)
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    with watched(edges), no_garbage_collection():
        for turn in range(WARM_UP + steps):
            if new_grads:
                work.make_grads()
            step()
            for part, seconds in edges.parts().items() if turn >= WARM_UP else ():
                found[part].append(seconds / params.tensors * 1e9)
    return found


def profile(params: ParamList, steps: int, commit: str | None) -> HostRecord:
    facts = machine.machine(CPU)  # before any work, for the load of others
    found = {grads: {part: list[float]() for part in PARTS} for grads in GRADS}
    quietest: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for grads, parts in found.items():
            values = measure(params, grads == "new", steps)
            medians = {part: statistics.median(values[part]) for part in PARTS}
            if grads not in quietest or medians["step"] < quietest[grads]["step"]:
                quietest[grads] = medians
            for part in PARTS:
                parts[part] += values[part]
    return HostRecord(
        schema=SCHEMA,
        date=machine.date(),
        commit=commit or machine.commit(),
        machine=facts,
        versions=machine.versions(()),
        list=params.name,
        tensors=params.tensors,
        elements=params.numel,
        ns_per_tensor={
            grads: {part: Spread.of(values) for part, values in parts.items()}
            for grads, parts in found.items()
        },
        quietest_ns_per_tensor=quietest,
    )


def load(path: Path) -> HostRecord:
    """Reads a record.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    return decode(HostRecord, json.loads(path.read_text()), "record")


def show(console: Console, record: HostRecord) -> None:
    """A row for each part: medians, and what the part is."""
    rows = []
    for part, what in PARTS.items():
        of_all = [record.ns_per_tensor[grads][part].median for grads in GRADS]
        of_quietest = [record.quietest_ns_per_tensor[grads][part] for grads in GRADS]
        rows.append((part, *map(three_digits, (*of_all, *of_quietest)), what))
    console.line(f"{record.list}: {record.tensors:,} tensors; median ns a tensor")
    columns = [f"grads {grads}{where}" for where in ("", ", quietest") for grads in GRADS]
    console.table(("part", *columns, "what it is"), rows)
    figure = TARGET.figure(record)
    console.line(f"{TARGET.what}: {figure:.3f}, target {TARGET.relation} {TARGET.bound:g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--steps",
        type=at_least_1,
        default=STEPS,
        help=f"of {ROUNDS} rounds each; default: %(default)s",
    )
    parser.add_argument("--commit", help="of these sources, where there is no repository")
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    console = open_console()
    record = profile(PARAMS, given.steps, given.commit)
    show(console, record)
    path = given.out / "host-cpu.json"
    save_json(asdict(record), path)
    console.line(f"record: {path.resolve()}")
    return 0


def at_least_1(text: str) -> int:
    """An argument that is a count."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
