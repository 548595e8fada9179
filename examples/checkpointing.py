"""Checkpoints that survive a crash at any moment: write aside, fsync, rename; load the newest.

A file is written under a name that no reader looks at, brought to the disk, and only then given
its own name, in one step of the file system. Whoever looks finds the old files or the new one,
whole, whenever the process was killed or the power went.

Run it: ``python examples/checkpointing.py``.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from adamod_fused import AdaMod

KEEP = 2  # the newest, and one more in case the disk damages it later


def save(folder: Path, step: int, checkpoint: dict[str, Any]) -> Path:
    """Writes a checkpoint of a step, whole or not at all. One process writes to a folder."""
    path = folder / f"step-{step:09d}.pt"
    aside = folder / "next.partial"  # in the same folder: a rename does not cross file systems
    with aside.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # else the name may reach the disk before the bytes do
    os.replace(aside, path)  # noqa: PTH105 (the name of the pattern)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name
    finally:
        os.close(directory)
    for old in sorted(folder.glob("step-*.pt"))[:-KEEP]:
        old.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; ValueError where the file is damaged or is none."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is truncated or no checkpoint; load the one before it") from error
    if not isinstance(checkpoint, dict) or not {"step", "model", "optimizer"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint: it must hold step, model and optimizer")
    return checkpoint


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was finished."""
    return max(folder.glob("step-*.pt"), default=None)


def train(folder: Path, until: int) -> torch.nn.Module:
    """Trains a small model, from the newest checkpoint if there is one."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = AdaMod(model.parameters(), lr=3e-2, beta3=0.9, weight_decay=0.01)
    start = 0
    if (path := newest(folder)) is not None:
        checkpoint = load(path)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["step"]
    for step in range(start, until):
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(folder, step + 1, {"step": step + 1, **state})
    print(f"steps {start} to {until}: loss {loss.item():.4f}")
    return model


def main() -> None:
    """Stops a run between two checkpoints, resumes it, and compares it with an unbroken one."""
    with tempfile.TemporaryDirectory() as broken, tempfile.TemporaryDirectory() as whole:
        train(Path(broken), 25)
        resumed = train(Path(broken), 50)
        unbroken = train(Path(whole), 50)
    pairs = zip(resumed.parameters(), unbroken.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    print("the resumed run equals the unbroken one, bit for bit")


if __name__ == "__main__":
    main()
