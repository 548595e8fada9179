"""The targets of the project as data: what is bounded, and how it is read from a record.

All are ratios within one record, or host times; a record of any machine may be held to them, and
the machine that a target was set on is named beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import fits
from .contestants import BASELINE
from .record import Record, Result, Spread
from .report import OURS

CPU, CUDA, TRITON = f"{OURS}cpu", f"{OURS}cuda", f"{OURS}triton"
EAGER_ADAMOD = "pytorch_optimizer AdaMod"
LINEAR = 1.25
"""The power with which cost may grow at the end of a sweep over sizes and still count as linear; a
step that is quadratic has 2."""

LINEAR_OUT_OF_CACHE = 1.53
"""The same over tensors, whose objects leave a CPU's caches within the last decade: one that lies
in memory takes 3.4 times as long as one in a cache (NOTES.md), so ten times as many may take 34
times as long, and log10(34) = 1.53."""


class NotMeasuredError(Exception):
    """A record does not hold what a target is about; the message says why."""


Figure = Callable[[Record], float]
"""Reads from a record what a target bounds; raises NotMeasuredError."""


class Target(NamedTuple):
    """A bound on a figure in records of ``device``."""

    device: str
    where: str
    what: str
    relation: str
    bound: float
    figure: Figure

    def met(self, figure: float) -> bool:
        return figure <= self.bound if self.relation == "<=" else figure >= self.bound


def result_of(record: Record, contestant: str, name: str, dtype: str = "float32") -> Result:
    found = record.find(name, contestant, dtype)
    if found is not None:
        return found
    for entry in record.left_out:
        if (entry.list, entry.dtype) == (name, dtype) and entry.contestant in (contestant, "all"):
            raise NotMeasuredError(f"{contestant} on {name} {dtype}: {entry.reason}")
    if contestant in record.absent:
        raise NotMeasuredError(f"{contestant}: {record.absent[contestant]}")
    raise NotMeasuredError(f"the record has no {contestant} on {name} {dtype}")


def some(value: float | None, what: str) -> float:
    if value is None:
        raise NotMeasuredError(f"the record has no {what}")
    return value


def median(spread: Spread | None, what: str) -> float:
    return some(spread.median if spread else None, what)


def wall_us(contestant: str, name: str) -> Figure:
    return lambda record: median(result_of(record, contestant, name).wall_us, "wall time")


def host_us(contestant: str, name: str) -> Figure:
    return lambda record: median(result_of(record, contestant, name).host_us, "host time")


def ratio(over: Figure, under: Figure) -> Figure:
    return lambda record: over(record) / under(record)


def over_adam(contestant: str, name: str, dtype: str = "float32") -> Figure:
    def figure(record: Record) -> float:
        found = result_of(record, contestant, name, dtype)
        result_of(record, BASELINE, name, dtype)
        return some(found.over_adam, "ratio to the baseline")

    return figure


def share_of_copy(contestant: str, name: str) -> Figure:
    return lambda record: result_of(record, contestant, name).share_of_copy


def most_launches(record: Record) -> float:
    """Of ours on any list; a result is of one combination of dtypes."""
    counts = [r.launches for r in record.results if r.contestant.startswith(OURS)]
    counted = [count for count in counts if count is not None]
    return some(max(counted, default=None), "count of launches")


def steepest(against: str) -> Figure:
    """Of ours, how fast cost grows at the end of a sweep."""

    def figure(record: Record) -> float:
        sweeps = fits.sweep_points(record.results, record.lists).items()
        exponents = [
            fits.exponent(found)
            for sweep, found in sweeps
            if sweep.against == against and sweep.contestant.startswith(OURS) and len(found) > 1
        ]
        return some(max(exponents, default=None), f"two sizes against {against}")

    return figure


SMALL, LARGE, MANY = "small-1000", "single-50m", "small-10000"
GPT2, RESNET, LLAMA, LARGE_GPU = "gpt2-124m", "resnet50", "llama-3.2-1b", "single-1g"
ADAMS = "step / torch fused Adam's"
ADAM_OURS = "torch fused Adam / ours"
COPY = "share of copy bandwidth"
LINE = "exponent of the last decade"

TARGETS = (
    Target("cpu", "CPU, 2 cores", f"50 M fp32: {ADAMS}", "<=", 1.29, over_adam(CPU, LARGE)),
    Target(
        "cpu",
        "CPU",
        f"50 M fp32: {EAGER_ADAMOD} / ours",
        ">=",
        6,
        ratio(over_adam(EAGER_ADAMOD, LARGE), over_adam(CPU, LARGE)),
    ),
    Target(
        "cpu",
        "CPU",
        f"1,000 x 64: {ADAM_OURS}",
        ">=",
        10,
        ratio(over_adam(BASELINE, SMALL), over_adam(CPU, SMALL)),
    ),
    Target("cpu", "CPU", f"GPT-2 fp32: {ADAMS}", "<=", 1.25, over_adam(CPU, GPT2)),
    Target("cpu", "CPU", f"ResNet-50 fp32: {ADAMS}", "<=", 1.25, over_adam(CPU, RESNET)),
    Target("cpu", "CPU", f"GPT-2 bf16: {ADAMS}", "<=", 1.0, over_adam(CPU, GPT2, "bfloat16")),
    Target("cpu", "CPU", f"ResNet-50 bf16: {ADAMS}", "<=", 1.0, over_adam(CPU, RESNET, "bfloat16")),
    Target("cuda", "H200", f"1 G fp32, cuda: {COPY}", ">=", 0.95, share_of_copy(CUDA, LARGE_GPU)),
    Target("cuda", "H200", f"Llama-1B fp32, cuda: {COPY}", ">=", 0.95, share_of_copy(CUDA, LLAMA)),
    Target(
        "cuda", "H200", f"1 G fp32, triton: {COPY}", ">=", 0.93, share_of_copy(TRITON, LARGE_GPU)
    ),
    Target(
        "cuda", "H200", f"Llama-1B fp32, triton: {COPY}", ">=", 0.93, share_of_copy(TRITON, LLAMA)
    ),
    Target("cuda", "H200", f"GPT-2 fp32: {ADAMS}", "<=", 1.25, over_adam(CUDA, GPT2)),
    Target(
        "cuda",
        "H200",
        f"10,000 x 64, wall time: {ADAM_OURS}",
        ">=",
        10,
        ratio(wall_us(BASELINE, MANY), wall_us(CUDA, MANY)),
    ),
    Target("cuda", "H200", "launches per step, any list", "<=", 1, most_launches),
    Target("cuda", "H200", "148 tensors (GPT-2): host us a step", "<=", 60, host_us(CUDA, GPT2)),
    Target("cpu", "any", f"cost against size: {LINE}", "<=", LINEAR, steepest("elements")),
    Target(
        *("cpu", "any", f"cost against tensors: {LINE}"),
        *("<=", LINEAR_OUT_OF_CACHE, steepest("tensors")),
    ),
    Target("cuda", "any", f"cost against size: {LINE}", "<=", LINEAR, steepest("elements")),
    Target("cuda", "any", f"cost against tensors: {LINE}", "<=", LINEAR, steepest("tensors")),
)
