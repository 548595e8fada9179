"""The targets of the project as data: what is bounded, and how it is read from a record.

All are ratios within one record, or host times; a record of any machine may be held to them, and
the machine that a target was set on is named beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import fits
from .contestants import BASELINE
from .record import Record, Result, Spread
from .report import OURS

CPU, CUDA, TRITON = f"{OURS}cpu", f"{OURS}cuda", f"{OURS}triton"
IN_16, IN_8, IN_SPLIT_8 = " 16bit", " 8bit", " split 8bit"  # what names of ours end with
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


def over_adam_of_float32(contestant: str, name: str) -> Figure:
    """A step on bfloat16 over the baseline's on as many elements of float32."""

    def figure(record: Record) -> float:
        steps = [result_of(record, contestant, name, "bfloat16"), result_of(record, BASELINE, name)]
        bf16, fp32 = (step.step_ms.median for step in steps)
        return bf16 / fp32

    return figure


def least_gain(peer: str, contestant: str, names: Sequence[str]) -> Figure:
    """Of the lists: a peer's step over one of ours, each taken over the baseline's beside it."""
    gains = [ratio(over_adam(peer, name), over_adam(contestant, name)) for name in names]
    return lambda record: min(gain(record) for gain in gains)


def state_bytes(contestant: str, name: str) -> Figure:
    return lambda record: result_of(record, contestant, name).state_bytes_per_param


def share_of_copy(contestant: str, name: str) -> Figure:
    return lambda record: result_of(record, contestant, name).share_of_copy


def most_launches(contestants: Sequence[str]) -> Figure:
    """Of any of them on any list; a result is of one combination of dtypes."""

    def figure(record: Record) -> float:
        counts = [r.launches for r in record.results if r.contestant in contestants]
        counted = [count for count in counts if count is not None]
        return some(max(counted, default=None), "count of launches")

    return figure


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
STATES = "bytes of states per parameter"
PEERS_IN_8 = ("bitsandbytes Adam8bit", "flashoptim AdamW")
CODED_ON_GPU = [ours + form for ours in (CUDA, TRITON) for form in (IN_16, IN_8, IN_SPLIT_8)]
"""A step of theirs is two launches on most lists: tensors too small to be coded are apart."""

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
    Target("cuda", "H200", "launches per step, any list", "<=", 1, most_launches((CUDA, TRITON))),
    Target("cuda", "H200", "148 tensors (GPT-2): host us a step", "<=", 60, host_us(CUDA, GPT2)),
    Target("cpu", "any", f"cost against size: {LINE}", "<=", LINEAR, steepest("elements")),
    Target(
        *("cpu", "any", f"cost against tensors: {LINE}"),
        *("<=", LINEAR_OUT_OF_CACHE, steepest("tensors")),
    ),
    Target("cuda", "any", f"cost against size: {LINE}", "<=", LINEAR, steepest("elements")),
    Target("cuda", "any", f"cost against tensors: {LINE}", "<=", LINEAR, steepest("tensors")),
    Target("cpu", "CPU", f"50 M fp32, 16bit: {ADAMS}", "<=", 0.90, over_adam(CPU + IN_16, LARGE)),
    Target("cpu", "CPU", f"50 M fp32, 8bit: {ADAMS}", "<=", 0.80, over_adam(CPU + IN_8, LARGE)),
    Target("cpu", "any", f"8bit: {STATES}", "<=", 3.1, state_bytes(CPU + IN_8, LARGE)),
    Target("cuda", "any", f"8bit: {STATES}", "<=", 3.1, state_bytes(CUDA + IN_8, LARGE_GPU)),
    Target(
        "cuda", "H200", f"1 G fp32, 8bit: {ADAMS}", "<=", 0.68, over_adam(CUDA + IN_8, LARGE_GPU)
    ),
    Target(
        "cuda", "H200", f"1 G fp32, 16bit: {ADAMS}", "<=", 0.88, over_adam(CUDA + IN_16, LARGE_GPU)
    ),
    Target(
        *("cuda", "H200", "1 G bf16, split 8bit: step / torch fused Adam's in fp32"),
        *("<=", 0.60, over_adam_of_float32(CUDA + IN_SPLIT_8, LARGE_GPU)),
    ),
    Target(
        "cuda",
        "H200",
        f"1 G fp32, 16bit: {COPY}",
        ">=",
        0.93,
        share_of_copy(CUDA + IN_16, LARGE_GPU),
    ),
    Target(
        "cuda", "H200", f"1 G fp32, 8bit: {COPY}", ">=", 0.90, share_of_copy(CUDA + IN_8, LARGE_GPU)
    ),
    *(
        Target(
            *("cuda", "H200", f"GPT-2 and 1 G, fp32: {peer} / 8bit"),
            *(">=", 1, least_gain(peer, CUDA + IN_8, (GPT2, LARGE_GPU))),
        )
        for peer in PEERS_IN_8
    ),
    Target(
        "cuda", "H200", "coded: launches per step, any list", "<=", 2, most_launches(CODED_ON_GPU)
    ),
)
