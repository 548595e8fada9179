"""The command ``python -m bench`` for tests: on few lists of small tensors."""

from __future__ import annotations

from pathlib import Path

from bench import __main__, record
from bench.contestants import BASELINE
from bench.record import Record

OURS = "adamod_fused cpu"
BOTH = f"{OURS},{BASELINE}"


def bench(out: Path, *arguments: str, lists: str = "tensors-10") -> tuple[int, Record]:
    """The exit code of a run on a few lists, and its record."""
    options = ["--out", str(out), "--lists", lists, "--dtypes", "float32"]
    code = __main__.main(["--device", "cpu", *options, *arguments])
    return code, record.load(out / "bench-cpu.json")
