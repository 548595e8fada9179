"""For torchrun: examples/fsdp2.py, whose last rank is killed while it writes a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import fsdp2

SAVES = 1  # that succeed

count = 0
original = fsdp2.dcp.save


def save(*args: Any, **kwargs: Any) -> Any:
    global count
    count += 1
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    if count > SAVES and is_last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


fsdp2.dcp.save = save
fsdp2.main()
