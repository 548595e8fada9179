"""examples/ run to their end by themselves, without a network, and each can fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 240  # the first import of a trainer on a busy machine; the examples take a few
LINES = 60

# The package that an example needs, and the extra that brings it.
NEEDS = {
    "accelerate_loop": ("accelerate", "integrations"),
    "huggingface_trainer": ("transformers", "integrations"),
    "lightning_module": ("lightning", "integrations"),
    "timm_schedulers": ("timm", "timm"),
    "torchtitan_style": ("torch", ""),
    "warm_restarts": ("torch", ""),
    "watch_the_bound": ("torch", ""),
    "weight_averaging": ("torch", ""),
}
# Run by tests of their own, named here: in several processes, or killed.
ELSEWHERE = {"checkpointing": "checkpoint_writer.py", "fsdp2": "distributed/test_killed_rank.py"}
COMPARE_BITS = ("accelerate_loop", "huggingface_trainer", "lightning_module", "torchtitan_style")


def test_every_example_is_tested_and_short() -> None:
    paths = sorted((ROOT / "examples").glob("*.py"))
    assert [path.stem for path in paths] == sorted([*NEEDS, *ELSEWHERE])
    for path in paths:
        if path.stem in NEEDS:
            assert len(path.read_text().splitlines()) < LINES, path.name
        else:
            assert path.name in (ROOT / "tests" / ELSEWHERE[path.stem]).read_text()


@pytest.mark.integration
@pytest.mark.parametrize("name", NEEDS)
def test_example(name: str, tmp_path: Path) -> None:
    package, extra = NEEDS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package} here: pip install 'adamod_fused[{extra}]'")
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / "example_script.py", ROOT / "examples" / f"{name}.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    *_, last = ran.stdout.splitlines()
    outcomes = json.loads(last)
    assert outcomes["as it stands"] == "passed", (outcomes, ran.stderr)
    assert outcomes["stand still"].startswith("AssertionError"), outcomes
    expected = "AssertionError" if name in COMPARE_BITS else "passed"
    assert outcomes["differ"].startswith(expected), outcomes
    assert list(tmp_path.iterdir()) == [], "an example left files behind"
