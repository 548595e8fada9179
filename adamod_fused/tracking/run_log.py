"""A run's statistics in its folder: one JSON line for each step that has something to tell.

A line holds ``step``, ``time`` (seconds since 1970) and, where given, ``loss``, ``scalars`` and
``rows``, those of ``bound_stats()``; a row's own ``step`` is its tensor's count, which may be less.
JSON has no NaN and no inf: such numbers are null.
"""

from __future__ import annotations

import json
import math
import operator
import reprlib
import time
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, distributed

from .appending import CUT, FolderLock, append_line
from .rows import HISTOGRAMS, LOG2_EDGES, NUMBERS, NewRows, Row, count_of, unwrapped

FILE = "bound_stats.jsonl"

Entry = dict[str, Any]
"""A line of the file, its nulls read as NaN."""

WHOLE = ("numel", "dead", "nonfinite")
FLOATS = ("lr", *(name for name in NUMBERS if name not in WHOLE))
COLUMNS = ("name", "numel", *NUMBERS, *HISTOGRAMS)

INT64 = range(-(2**63), 2**63)
COUNTS = range(2**63)


class RunLog:
    """Appends to ``RUN_DIR/bound_stats.jsonl``, which ``read`` and the report read.

    To be made once, before the first step. A resumed run goes on in the same file, at any step:
    what it had written beyond that step does not count any more. A line that was cut off when the
    run was killed stays in the file, marked, and is not read. From its first line on the process
    keeps the folder to itself. Of the ranks of ``torch.distributed`` the first one writes; the
    others check what they are given and touch no file.

    Args:
        run_dir: the run's folder; made if missing.

    Raises:
        OSError: a log cannot lie there.
    """

    def __init__(self, run_dir: str | PathLike[str]) -> None:
        self.path = Path(run_dir) / FILE
        self._new = NewRows(per_tensor=True)
        self._lock: FolderLock | None = None  # before ranks are known, none may keep out the others
        self._is_writer = _is_first_rank()
        if self._is_writer:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists():
                    self.path.open("ab").close()
            except OSError as error:
                raise type(error)(
                    f"a run log cannot lie in {self.path.parent} ({error.strerror}); name a folder "
                    "that may be written to, there or to be made"
                ) from error

    def log(
        self,
        optimizer: Any,
        loss: Any = None,
        *,
        step: int | None = None,
        **scalars: Any,
    ) -> None:
        """Writes a line if the last tracked step is new, or if there is a number to write.

        To be called after ``optimizer.step()``. A loss on a GPU is waited for: pass it now and
        then, not in every step.

        Args:
            optimizer: an AdaMod that tracks its bound.
            loss: a number or a tensor of one element. Default: None.
            step: the line's, whatever is in it; where the lines' steps fall, a run was resumed. To
                be given, always or never, where a GradScaler may skip steps or parameters come
                later. Default: None, the largest step count of the optimizer's tensors.
            scalars: more numbers, by name; the report draws those whose name has "loss" in it.

        Raises:
            TypeError: a number is none.
            ValueError: the step does not fit in 64 bits.
            RuntimeError: the optimizer does not track its bound, or another process logs into this
                folder. Rows come again with the next call.
            OSError: the line could not be written. The file is as it was, and rows come again with
                the next call.
        """
        optimizer = unwrapped(optimizer)
        numbers = _numbers(loss, scalars)
        if step is not None:
            step = _whole("step", step)
        # Once another rank, always: the process group may be gone before the last line.
        self._is_writer = self._is_writer and _is_first_rank()
        if not self._is_writer:
            return
        with self._new.of(optimizer) as rows:
            if numbers or rows:
                line = {"step": count_of(optimizer) if step is None else step, "time": time.time()}
                self._append(line | numbers | ({"rows": rows} if rows else {}))

    def _append(self, entry: Entry) -> None:
        text = json.dumps(_without_nonfinite(entry), separators=(",", ":"), allow_nan=False)
        self._lock = FolderLock.of(self.path.parent)
        append_line(self.path, text.encode())


def _numbers(loss: Any, scalars: dict[str, Any]) -> Entry:
    entry: Entry = {}
    if loss is not None:
        entry["loss"] = _as_float("loss", loss)
    if scalars:
        entry["scalars"] = {name: _as_float(name, value) for name, value in scalars.items()}
    return entry


def _as_float(name: str, value: Any) -> float:
    given = reprlib.repr(value)
    if isinstance(value, Tensor):
        given = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    try:
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError
        return float(value.item() if hasattr(value, "item") else value)  # as torch wants of a loss
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{name} must be a number or a tensor of one element, got {given}"
        ) from error


def _whole(name: str, value: Any) -> int:
    try:
        whole = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, got {reprlib.repr(value)}") from error
    if whole not in INT64:
        raise ValueError(f"{name} must fit in 64 bits, got {reprlib.repr(whole)}")
    return whole


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return [_without_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_first_rank() -> bool:
    is_one_of_many = distributed.is_available() and distributed.is_initialized()
    return not is_one_of_many or distributed.get_rank() == 0


def read(run_dir: str | PathLike[str]) -> list[Entry]:
    """The entries of a run, by rising step, one a step.

    Raises:
        FileNotFoundError: there is no such folder or no log in it.
        ValueError: a line is no entry.
    """
    return merged(lines(run_dir))


def lines(run_dir: str | PathLike[str]) -> Iterator[Entry]:
    """The entries one by one as they were written, for those that cannot keep them all.

    A line that was cut off, by a kill or because the run is writing it, is left out.

    Raises:
        FileNotFoundError, ValueError: as ``read``.
    """
    path = Path(run_dir) / FILE
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; name the folder of a run")
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {FILE} in {path.parent}; make log = RunLog({str(path.parent)!r}) once, "
            "and call log.log(optimizer) after each step"
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            is_ended = line.endswith(b"\n")
            try:
                entry = _entry(line.removesuffix(CUT), f"{path}, line {number}")
            except ValueError:
                if is_ended and not line.endswith(CUT):
                    raise
            else:
                yield entry
            if not is_ended:
                break  # whatever the run has written since, it begins within this line


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """Entries of one step as one; where steps fall, a resumed run overwrites what was later."""
    result: list[Entry] = []
    for entry in entries:
        while result and result[-1]["step"] > entry["step"]:
            result.pop()
        if result and result[-1]["step"] == entry["step"]:
            both = {**result[-1].get("scalars", {}), **entry.get("scalars", {})}
            result[-1] |= entry | ({"scalars": both} if both else {})
        else:
            result.append(entry)
    return result


def _entry(line: bytes, where: str) -> Entry:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            raise ValueError("no object with a whole number as its step")
        if entry["step"] not in INT64:
            raise ValueError("step does not fit in 64 bits")
        if "loss" in entry:
            entry["loss"] = _number("loss", entry["loss"])
        if "scalars" in entry:
            entry["scalars"] = _scalars(entry["scalars"])
        if not isinstance(entry.get("rows", []), list):
            raise ValueError("rows are no list")
        for row in entry.get("rows", ()):
            _check_row(row)
            row |= {name: _number(name, row[name]) for name in FLOATS if name in row}
    # json's own and unicode's are ValueErrors too; of deep nesting json says RecursionError.
    except (ValueError, RecursionError) as error:
        shown = line[:60].decode(errors="replace").strip()
        raise ValueError(
            f"{where} is no entry of a run log: {error}; it begins with {shown!r}; remove that "
            "line, or take the file from a backup"
        ) from error
    return entry


def _scalars(scalars: Any) -> dict[str, float]:
    if not isinstance(scalars, dict):
        raise ValueError("scalars are no object")
    return {name: _number(name, value) for name, value in scalars.items()}


def _check_row(row: Row) -> None:
    if not isinstance(row, dict):
        raise ValueError("a row is no object")
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise ValueError(f"a row lacks {', '.join(missing)}")
    if not isinstance(row["name"], str):
        raise ValueError("name is no string")
    for name in WHOLE:
        if type(row[name]) is not int:
            raise ValueError(f"{name} is no whole number")
        if row[name] not in COUNTS:
            raise ValueError(f"{name} is negative or does not fit in 64 bits")
    for name in HISTOGRAMS:
        if not isinstance(row[name], list) or set(map(type, row[name])) != {int}:
            raise ValueError(f"{name} is no list of whole numbers")
        if not all(count in COUNTS for count in row[name]):
            raise ValueError(f"{name} has a count that is negative or does not fit in 64 bits")
        if len(row[name]) != len(LOG2_EDGES) - 1:
            raise ValueError(f"{name} has {len(row[name])} bins, not {len(LOG2_EDGES) - 1}")


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is too large") from error
