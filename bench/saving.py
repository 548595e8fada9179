"""What saving and loading states costs; `python -m bench.saving` prints and records it.

A step, state_dict(), load_state_dict() and check_finite() take turns, so that whatever disturbs the
machine hits all of them. Their times are told in steps of the same turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adamod_fused import AdaMod
from adamod_fused.console import Console, open_console
from adamod_fused.formats import STATE_FORMATS

from . import machine
from .clocks import no_garbage_collection
from .host import HostTarget, at_least_1
from .lists import LISTS, ParamList
from .record import RESULTS, Spread, save_json
from .report import three_digits
from .schema import decode
from .work import ValuesAndGrads

SCHEMA = 1
CPU = torch.device("cpu")
PARAMS = LISTS["single-50m"]
WARM_UP = 2
ROUNDS = 20
MOST_STEPS = 5.0  # of saving, and of loading

OPERATIONS = {
    "save": "state_dict()",
    "load": "load_state_dict()",
    "check": "check_finite()",
}


@dataclass(frozen=True)
class Cost:
    """Of one state format."""

    step_ms: Spread
    steps: dict[str, Spread]
    """The time of each of OPERATIONS, divided by that of a step of the same round."""


@dataclass(frozen=True)
class SavingRecord(machine.Origin):
    """What a run found."""

    list: str
    tensors: int
    elements: int
    costs: dict[str, Cost]
    """By state format."""


def dearest(record: SavingRecord) -> float:
    """The largest time, in steps, of saving and loading in any format."""
    return max(
        cost.steps[name].median for cost in record.costs.values() for name in ("save", "load")
    )


TARGET = HostTarget(
    "cpu", "CPU", "saving or loading states, any format / a step", "<=", MOST_STEPS, dearest
)


def measure(params: ParamList, state_format: str, rounds: int) -> Cost:
    """Measures states of float32 parameters, after rounds that do not count."""
    data = ValuesAndGrads.make(params.shapes, torch.float32, CPU)
    tensors = [torch.nn.Parameter(value) for value in data.values]
    for tensor, grad in zip(tensors, data.grads, strict=True):
        tensor.grad = grad
    optimizer = AdaMod(tensors, state_format=state_format)
    optimizer.step()
    saved: dict[str, Any] = optimizer.state_dict()
    calls: dict[str, Callable[[], Any]] = {
        "save": optimizer.state_dict,
        "load": lambda: optimizer.load_state_dict(saved),
        "check": optimizer.check_finite,
    }
    step_ms: list[float] = []
    steps: dict[str, list[float]] = {name: [] for name in calls}
    with no_garbage_collection():
        for turn in range(WARM_UP + rounds):
            optimizer.step()  # the plan is made again after a load
            step = timed_ms(optimizer.step)
            found = {name: timed_ms(call) for name, call in calls.items()}
            if turn >= WARM_UP:
                step_ms.append(step)
                for name, ms in found.items():
                    steps[name].append(ms / step)
    return Cost(Spread.of(step_ms), {name: Spread.of(values) for name, values in steps.items()})


def timed_ms(call: Callable[[], Any]) -> float:
    """Of a call; what it returns is freed afterwards."""
    start = time.perf_counter()
    result = call()
    elapsed = (time.perf_counter() - start) * 1e3
    del result
    return elapsed


def profile(params: ParamList, rounds: int, commit: str | None) -> SavingRecord:
    facts = machine.machine(CPU)  # before any work, for the load of others
    return SavingRecord(
        schema=SCHEMA,
        date=machine.date(),
        commit=commit or machine.commit(),
        machine=facts,
        versions=machine.versions(()),
        list=params.name,
        tensors=params.tensors,
        elements=params.numel,
        costs={name: measure(params, name, rounds) for name in STATE_FORMATS},
    )


def load(path: Path) -> SavingRecord:
    """Reads a record.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    return decode(SavingRecord, json.loads(path.read_text()), "record")


def show(console: Console, record: SavingRecord) -> None:
    """A row for each state format, medians."""
    console.line(f"{record.list}: {record.elements:,} elements; median time in steps")
    rows = []
    for name, cost in record.costs.items():
        steps = (three_digits(cost.steps[operation].median) for operation in OPERATIONS)
        rows.append((name, three_digits(cost.step_ms.median), *steps))
    console.table(("states", "step ms", *OPERATIONS.values()), rows)
    figure = TARGET.figure(record)
    console.line(f"{TARGET.what}: {figure:.3f}, target {TARGET.relation} {TARGET.bound:g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.saving", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--rounds", type=at_least_1, default=ROUNDS, help="a format; default: %(default)s"
    )
    parser.add_argument("--commit", help="of these sources, where there is no repository")
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    console = open_console()
    record = profile(PARAMS, given.rounds, given.commit)
    show(console, record)
    path = given.out / "saving-cpu.json"
    save_json(asdict(record), path)
    console.line(f"record: {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
