"""`make gpu` without a GPU: how it shares its minutes, and the commands that it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

import adamod_fused

CI = Path(__file__).resolve().parents[1] / ".ci"


@pytest.fixture(scope="module")
def gpu():
    """The script .ci/gpu.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CI))
        spec = spec_from_file_location("gpu_script", CI / "gpu.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(
    ("left", "benchmark"),
    [(5, 5), (60, 60), (90, 90), (150, 90), (190, 90), (250, 150), (400, 300)],
)
def test_shares(gpu, left, benchmark):
    """The benchmark comes first; what is beyond the trials' time is the benchmark's too."""
    assert gpu.bench_seconds(left) == benchmark


def test_a_stage_leaves_its_outcome_and_files(gpu, tmp_path, monkeypatch):
    ran = []

    def run(*command, seconds):
        ran.append((command, seconds))
        (tmp_path / "bench-new.json").touch()
        return 1

    old = tmp_path / "bench-old.json"
    old.touch()
    os.utime(old, (0, 0))
    monkeypatch.setattr(gpu, "run", run)
    found = gpu.measure(("bench",), tmp_path, "abc", 65)
    assert found.pop("seconds") >= 0
    assert found == {"exit_code": 1, "files": ["bench-new.json"]}
    options = ("--minutes", "1.00", "--out", str(tmp_path), "--commit", "abc")
    assert ran == [(("-m", "bench", *options), 65)]


def test_what_has_no_time_left_is_named(gpu, tmp_path):
    found = gpu.measure(gpu.TRIALS, tmp_path, None, gpu.LEAST_SECONDS - 1)
    assert found == {"left_out": "29 seconds were left, 30 are needed"}


def test_what_does_not_stop_is_killed_and_named(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0)
    monkeypatch.setattr(gpu, "measuring", lambda *_: ["-c", "import time; time.sleep(60)"])
    found = gpu.measure(gpu.TRIALS, tmp_path, None, 1)
    assert found.pop("seconds") < 30
    assert found == {
        "exit_code": None,
        "left_out": "it did not stop by itself in time, and was killed",
        "files": [],
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would measure")
@pytest.mark.parametrize("stage", ["BENCHMARK", "TRIALS"])
def test_the_commands_are_understood(gpu, stage, tmp_path):
    """All that is wrong with them here is that there is no GPU."""
    command = gpu.measuring(getattr(gpu, stage), tmp_path, "abc", 65)
    # The package under test, wherever it lies, and then the benchmark.
    package = Path(adamod_fused.__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{CI.parent}"}
    result = subprocess.run(
        [sys.executable, *command],
        cwd=CI.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "GPU" in result.stderr.splitlines()[-1]
