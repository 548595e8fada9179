"""Whole programs on a GPU: steps under compute-sanitizer, and the demo."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from twins import on_each_backend

pytestmark = pytest.mark.gpu

TESTS = Path(__file__).resolve().parent

# What each tool of compute-sanitizer is to find when sanitized_steps.py does it on purpose.
# racecheck is not among them: it watches shared memory, which only sums of squares and looks use.
# Of what they halve, each round reads what the one before its barrier wrote, and counts are
# atomic. Nothing here could plant a race for it to find.
FAULTS = {"memcheck": "overrun", "initcheck": "uninitialized"}


def sanitize(tool: str, *arguments: str) -> tuple[int | None, str]:
    """How many errors a tool finds in sanitized_steps.py, None if it did not get to count."""
    cuda_home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = os.pathsep.join([os.environ["PATH"], f"{cuda_home}/bin"])
    program = shutil.which("compute-sanitizer", path=path)
    if program is None:
        pytest.skip("there is no compute-sanitizer in CUDA_HOME or on PATH")
    # Errors that calls return are left to the script; the rest is what this is about.
    options = [f"--tool={tool}", "--report-api-errors=no", "--target-processes=application-only"]
    python_path = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # each tensor has bounds of its own
    }
    process = subprocess.run(
        [program, *options, sys.executable, "-m", "sanitized_steps", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ | environment,
    )
    output = process.stdout + process.stderr
    found = re.search(r"ERROR SUMMARY: (\d+) error", output)
    return int(found[1]) if found else None, output


@pytest.mark.parametrize("tool", FAULTS)
def test_compute_sanitizer(tool: str) -> None:
    errors, output = sanitize(tool, FAULTS[tool])
    if not errors:
        pytest.skip(f"{tool} does not find a planted error here: {output[-500:]}")
    errors, output = sanitize(tool)
    assert errors == 0, output[-5000:]
    assert "all steps done" in output


# The demo without its figure, for want of matplotlib: nothing else needs it.
DEMO_WITHOUT_FIGURE = """
import sys
from adamod_fused import __main__
from adamod_fused.demo import cli
cli.extras.require_matplotlib = lambda: None
cli.plot.draw = lambda *arguments: None
sys.exit(__main__.main())
"""


@on_each_backend
def test_demo_on_the_gpu(backend: str, tmp_path: Path) -> None:
    options = ["--steps=30", "--device=cuda", f"--backend={backend}", f"--out={tmp_path}"]
    start = ["-m", "adamod_fused"] if find_spec("matplotlib") else ["-c", DEMO_WITHOUT_FIGURE]
    process = subprocess.run(
        [sys.executable, *start, "demo", *options], capture_output=True, text=True, timeout=180
    )
    assert process.returncode == 0, process.stderr
    assert re.search(r"AdaMod\W+" + backend + r"\b.*\byes\b", process.stdout), process.stdout
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["identical"] is True
    assert [run["backend"] for run in record["runs"]] == [backend, "reference", "torch fused"]
