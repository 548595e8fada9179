"""The process that test_checkpoint_crashes.py kills: it writes checkpoints in a loop.

``python checkpoint_writer.py FOLDER`` forks writers from one process that has imported torch
already: for every line on its input a new one, whose process id it prints.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "checkpointing.py"
NUMEL = 1 << 17  # half a MiB a tensor: some milliseconds of writing for a kill to fall into


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("checkpointing_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint_of(step: int) -> dict[str, Any]:
    """A checkpoint every number of which is its step."""
    states = {name: torch.full((NUMEL,), float(step)) for name in ("exp_avg", "exp_avg_sq")}
    return {
        "step": step,
        "model": {"weight": torch.full((NUMEL,), float(step))},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), **states}},
            "param_groups": [{"lr": float(step), "params": [0]}],
        },
    }


def write_for_ever(example: ModuleType, folder: Path) -> None:
    path = example.newest(folder)
    step = 0 if path is None else example.load(path)["step"]
    while True:
        step += 1
        example.save(folder, step, checkpoint_of(step))


def main() -> None:
    torch.set_num_threads(1)  # a fork of a process with a team of threads could hang
    example = load_example()
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write_for_ever(example, Path(sys.argv[1]))
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
