"""Steps among threads, signals and forks, in a process whose crash is a failure."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from budget import SECONDS
from disturbed import SCENARIOS

SCRIPT = Path(__file__).with_name("disturbed.py")


def test_steps_are_whole_or_are_not_done() -> None:
    seconds = SECONDS or 1.0  # for each scenario; one process, since each imports torch
    seed = random.randrange(2**32) if SECONDS else 0
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", SCRIPT, str(seed), str(seconds), *SCENARIOS],
        capture_output=True,
        text=True,
        timeout=len(SCENARIOS) * seconds + 120,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stderr}"
