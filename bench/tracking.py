"""What looking at the bound costs; `python -m bench.tracking` prints and records it.

Steps that are looked at and steps that are not take turns, so that whatever disturbs the machine
hits both. From how much longer the one takes follows what an average step costs, where every n-th
is looked at, and how far apart looks must be for a price.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adamod_fused.bound_stats import EVERY
from adamod_fused.console import Console, open_console

from . import machine
from .clocks import no_garbage_collection
from .contestants import ours
from .host import HostTarget, at_least_1
from .lists import LISTS, ParamList
from .record import RESULTS, Spread, rounded, save_json
from .report import three_digits
from .schema import decode
from .work import ValuesAndGrads

SCHEMA = 1
CPU = torch.device("cpu")
NAMES = ("single-50m", "gpt2-124m", "small-1000")
WARM_UP = 3
PAIRS = 40  # of steps, one of them looked at
MOST_COST = 1.05  # of an average step, over one that is never looked at


@dataclass(frozen=True)
class Cost:
    """Of one list; times in milliseconds."""

    tensors: int
    elements: int
    plain_ms: Spread
    seen_ms: Spread
    """Of steps that are looked at."""
    read_ms: Spread
    """Of ``bound_stats()``, which none of the steps holds."""
    seen_over_plain: Spread
    """Of each pair."""

    def average(self, every: int) -> float:
        """Of a step where every so manieth is looked at, over one that is not."""
        return 1 + (self.seen_over_plain.median - 1) / every

    def average_when_read(self, every: int) -> float:
        """That, where each look is read by ``bound_stats()`` too, as loggers do."""
        return self.average(every) + self.read_ms.median / self.plain_ms.median / every

    @property
    def least_every(self) -> int:
        """How far apart looks must be for the average step to cost ``MOST_COST`` at most."""
        return max(1, math.ceil(rounded((self.seen_over_plain.median - 1) / (MOST_COST - 1))))


@dataclass(frozen=True)
class TrackingRecord(machine.Origin):
    """What a run found."""

    every: int
    """The default."""
    costs: dict[str, Cost]
    """By list."""


def dearest(record: TrackingRecord) -> float:
    """An average step at the default, on the list where it costs the most."""
    return max(cost.average(record.every) for cost in record.costs.values())


TARGET = HostTarget(
    "cpu", "CPU", "tracked bound, default: average step / plain step", "<=", MOST_COST, dearest
)


def measure(params: ParamList, pairs: int, device: torch.device = CPU) -> Cost:
    """Of steps in float32 with gradients that stay; a GPU is waited for after each."""
    data = ValuesAndGrads.make(params.shapes, torch.float32, device)
    tensors = [torch.nn.Parameter(value) for value in data.values]
    for tensor, grad in zip(tensors, data.grads, strict=True):
        tensor.grad = grad
    optimizer: Any = ours(device.type).make(tensors)

    def step_ms(every: int) -> float:
        optimizer.track_bound(every)
        start = time.perf_counter()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    def read_ms() -> float:
        start = time.perf_counter()
        optimizer.bound_stats()
        return (time.perf_counter() - start) * 1e3

    with no_garbage_collection():
        for turn in range(WARM_UP):
            step_ms(turn % 2)
        found = [(step_ms(0), step_ms(1), read_ms()) for _ in range(pairs)]
    plain, seen, read = zip(*found, strict=True)
    return Cost(
        tensors=params.tensors,
        elements=params.numel,
        plain_ms=Spread.of(plain),
        seen_ms=Spread.of(seen),
        read_ms=Spread.of(read),
        seen_over_plain=Spread.of(s / p for s, p in zip(seen, plain, strict=True)),
    )


def profile(
    names: Sequence[str], pairs: int, commit: str | None, device: torch.device = CPU
) -> TrackingRecord:
    facts = machine.machine(device)  # before any work, for the load of others
    return TrackingRecord(
        schema=SCHEMA,
        date=machine.date(),
        commit=commit or machine.commit(),
        machine=facts,
        versions=machine.versions(()),
        every=EVERY,
        costs={name: measure(LISTS[name], pairs, device) for name in names},
    )


def load(path: Path) -> TrackingRecord:
    """Reads a record.

    Raises:
        OSError, ValueError: it cannot be read, or is none.
    """
    return decode(TrackingRecord, json.loads(path.read_text()), "record")


def show(console: Console, record: TrackingRecord) -> None:
    """A row for each list, medians."""
    columns = ("list", "tensors", "plain ms", "seen ms", "ratio", "read ms")
    last = (f"average, every {record.every}", "and read", f"<= {MOST_COST:g} at every")
    rows = []
    for name, cost in record.costs.items():
        spreads = (cost.plain_ms, cost.seen_ms, cost.seen_over_plain, cost.read_ms)
        figures = (three_digits(spread.median) for spread in spreads)
        averages = (cost.average(record.every), cost.average_when_read(record.every))
        shown = (f"{average:.3f}" for average in averages)
        rows.append((name, f"{cost.tensors:,}", *figures, *shown, str(cost.least_every)))
    console.table((*columns, *last), rows)
    figure = TARGET.figure(record)
    console.line(f"{TARGET.what}: {figure:.3f}, target {TARGET.relation} {TARGET.bound:g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tracking", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--pairs", type=at_least_1, default=PAIRS, help="of steps, a list; default: %(default)s"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s"
    )
    parser.add_argument("--commit", help="of these sources, where there is no repository")
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    console = open_console()
    record = profile(NAMES, given.pairs, given.commit, torch.device(given.device))
    show(console, record)
    path = given.out / f"tracking-{given.device}.json"
    save_json(asdict(record), path)
    console.line(f"record: {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
