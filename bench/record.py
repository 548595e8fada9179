"""What a run found: dataclasses, and the JSON file that they are written to and read from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adamod_fused.files import write_whole

from .schema import decode

SCHEMA = 1
DEVICES = ("cpu", "cuda")


def rounded(value: float) -> float:
    """Six significant digits: more than any clock here is good for, and fewer to read."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Spread:
    """How repeated measurements scatter."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    n: int

    def __post_init__(self) -> None:
        ordered = [self.min, self.q1, self.median, self.q3, self.max]
        if ordered != sorted(ordered):
            raise ValueError(f"min <= q1 <= median <= q3 <= max does not hold: {ordered}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value; quartiles are those of the values themselves, interpolated."""
        ordered = sorted(map(rounded, values))
        twice = ordered * 2 if len(ordered) == 1 else ordered  # one is too few before Python 3.13
        quartiles = statistics.quantiles(twice, n=4, method="inclusive")
        q1, median, q3 = map(rounded, quartiles)
        return cls(median, q1, q3, ordered[0], ordered[-1], len(ordered))


@dataclass(frozen=True)
class ListFacts:
    """A parameter list that was measured."""

    tensors: int
    elements: int
    source: str


@dataclass(frozen=True)
class LeftOut:
    """What was not measured though it was asked for; ``contestant`` may be ``"all"``."""

    list: str
    contestant: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Result:
    """One contestant on one list and dtype."""

    list: str
    contestant: str
    dtype: str
    step_ms: Spread
    """CPU: the time of step(). GPU: the device's, without the host's unless ``host_in_step``."""
    wall_us: Spread | None
    """GPU: from an idle device, until the step's work is done."""
    host_us: Spread | None
    """GPU: until step() returns, the device being busy. CPU: step() on tensors of 16 elements."""
    host_us_per_tensor: float | None
    kernel_us: float | None
    """Ours on a CPU: median time inside the backend's ``run`` during the measured steps."""
    bytes_per_param: float
    GB_per_s: float
    share_of_copy: float
    over_adam: float | None
    """A step over one of torch's fused Adam just before it, median over rounds; None without."""
    state_bytes_per_param: float
    peak_bytes: int | None
    """GPU: memory that a step takes besides what is there before it."""
    launches: int | None
    """GPU: kernels of one step."""
    host_in_step: bool | None = None
    """GPU: whether ``step_ms`` holds the host's time too, because no sleep held the queue."""
    in_cache: bool | None = None
    """GPU: whether steps may find their tensors in the L2 cache, as all sets fit in it at once."""


@dataclass(frozen=True)
class Fit:
    """A line through the cost of the lists of a sweep (bench/fits.py)."""

    contestant: str
    dtype: str
    against: str
    slope_ns: float
    intercept_us: float
    r_squared: float
    points: int


@dataclass(frozen=True)
class Record:
    """A whole run."""

    schema: int
    complete: bool
    quick: bool
    date: str
    commit: str | None
    device: str
    machine: dict[str, str | int | float | None]
    versions: dict[str, str]
    copy_GB_per_s: Spread | None  # noqa: N815 - GB is the unit
    in_place_GB_per_s: Spread | None  # noqa: N815
    absent: dict[str, str]
    left_out: tuple[LeftOut, ...]
    lists: dict[str, ListFacts]
    results: tuple[Result, ...]
    fits: tuple[Fit, ...]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}, got {self.schema}")
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        seen = set()
        for result in self.results:
            key = (result.list, result.contestant, result.dtype)
            if result.list not in self.lists:
                raise ValueError(f"results are of list {result.list!r}, which lists lacks")
            if key in seen:
                raise ValueError(f"there are two results of {', '.join(key)}")
            seen.add(key)

    def find(self, list_name: str, contestant: str, dtype: str) -> Result | None:
        """The result of a contestant on a list, if it was measured."""
        key = (list_name, contestant, dtype)
        return next((r for r in self.results if (r.list, r.contestant, r.dtype) == key), None)


def validate(data: Any) -> Record:
    """The record that decoded JSON holds.

    Raises:
        ValueError: something is missing, unknown, of the wrong type or out of range; the message
            says where and what.
    """
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        raise ValueError(f"record: schema must be {SCHEMA}, got {data.get('schema')!r}")
    record = decode(Record, data, "record")
    assert isinstance(record, Record)
    return record


RESULTS = Path(__file__).resolve().parent / "results"


def load(path: Path) -> Record:
    """Reads a record.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no valid record.
    """
    try:
        return validate(json.loads(path.read_text()))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
        raise ValueError(f"{path}: {error}") from None


def save(record: Record, path: Path) -> None:
    """Writes a record, whole or not at all, with one line for each result."""
    save_json(asdict(record), path)


def save_json(data: dict[str, Any], path: Path) -> None:
    """Writes ``data``, whole or not at all, with one line for each item of its lists."""
    write_whole(_text(data), path)


def _text(data: dict[str, Any]) -> str:
    """JSON that a diff can show: the items of the outer lists and objects have a line each."""

    def dump(value: Any) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def body(value: Any) -> str:
        if value and isinstance(value, (list, tuple)):
            return "[\n  " + ",\n  ".join(map(dump, value)) + "\n ]"
        if value and isinstance(value, dict):
            items = [f"{dump(key)}: {dump(item)}" for key, item in value.items()]
            return "{\n  " + ",\n  ".join(items) + "\n }"
        return dump(value)

    entries = [f" {dump(key)}: {body(value)}" for key, value in data.items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"
