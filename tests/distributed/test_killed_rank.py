"""examples/fsdp2.py, run as its readers run it, and as it goes when a rank is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import NEEDS_FSDP2

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "fsdp2.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SECONDS = 90  # of which importing torch three times takes most


def launch(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process group of its own, of which nothing remains."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def losses(done: subprocess.CompletedProcess[str]) -> dict[int, str]:
    """What the example printed: the loss at each step that it names."""
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("step ")]
    return {int(step.removesuffix(":")): loss for _, step, _, loss in lines}


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs no GPU or two, and here is one")
@NEEDS_FSDP2
def test_a_killed_rank_ends_the_job_and_the_last_checkpoint_goes_on(tmp_path: Path) -> None:
    alone, folder = tmp_path / "alone", tmp_path / "folder"
    undisturbed = losses(launch(EXAMPLE, "--folder", alone))
    assert list(undisturbed) == [10, 20, 30]
    assert float(undisturbed[30]) < float(undisturbed[10])

    killed = launch(*TORCHRUN, ROOT / "tests/distributed/killed_rank.py", "--folder", folder)
    assert killed.returncode != 0
    assert "Signal 9 (SIGKILL)" in killed.stderr
    assert "step 10" in killed.stdout
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000010"]

    resumed = losses(launch(*TORCHRUN, EXAMPLE, "--folder", folder))
    assert resumed == {step: undisturbed[step] for step in (20, 30)}
