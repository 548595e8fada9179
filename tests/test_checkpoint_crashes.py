"""Whatever kills a process that writes checkpoints, those on disk are whole; the example runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint_writer
import pytest
import torch
from helpers import assert_same_bits

example = checkpoint_writer.load_example()
KILLS = 20
SECONDS = 12.0  # after which a slow machine has seen enough of them


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that starts a writer for every line it is sent."""
    process = subprocess.Popen(
        [sys.executable, checkpoint_writer.__file__, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    process.stdout.close()


def flat(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {**checkpoint["model"], **checkpoint["optimizer"]["state"][0]}


def assert_whole(path: Path) -> int:
    """The step of a checkpoint, all of whose numbers are that step's."""
    checkpoint = example.load(path)
    step = checkpoint["step"]
    expected = checkpoint_writer.checkpoint_of(step)
    assert path.name == f"step-{step:09d}.pt"
    assert checkpoint["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    assert flat(checkpoint).keys() == flat(expected).keys()
    for name, tensor in flat(checkpoint).items():
        assert_same_bits(tensor, flat(expected)[name], f"{name} of {path.name}")
    return step


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(
    writers: subprocess.Popen[str], tmp_path: Path
) -> None:
    """SIGKILL, KILLS times in a few seconds; each writer goes on from what it finds."""
    moments = random.Random(0)
    steps = [0]
    end = time.monotonic() + SECONDS
    while len(steps) <= KILLS and time.monotonic() < end:
        print("start", file=writers.stdin, flush=True)
        pid = int(writers.stdout.readline())
        deadline = time.monotonic() + 10
        while (
            example.newest(tmp_path) is None or int(example.newest(tmp_path).stem[5:]) <= steps[-1]
        ):
            assert time.monotonic() < deadline, "the writer writes nothing"
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert writers.stdout.readline() == "ended\n"
        found = sorted(tmp_path.glob("step-*.pt"))
        assert 1 <= len(found) <= example.KEEP + 1  # killed before it took the oldest away
        written = [assert_whole(path) for path in found]
        assert written[-1] > steps[-1]
        steps.append(written[-1])
    assert len(steps) > 2


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_old_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no kill shows, only a loss of power: the order of the system calls."""
    calls = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", name_of(fd))), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(("replace", a.name, b.name)), replace(a, b))
    )
    monkeypatch.setattr(
        Path, "unlink", lambda path: (calls.append(("unlink", path.name)), unlink(path))
    )
    for step in (1, 2, 3):
        calls.clear()
        example.save(tmp_path, step, checkpoint_writer.checkpoint_of(step))
    assert calls == [
        ("fsync", "next.partial"),
        ("replace", "next.partial", "step-000000003.pt"),
        ("fsync", tmp_path.name),
        ("unlink", "step-000000001.pt"),
    ]
    assert example.newest(tmp_path).name == "step-000000003.pt"


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    example.save(tmp_path, 1, checkpoint_writer.checkpoint_of(1))
    with pytest.raises(AttributeError, match="pickle"):
        example.save(tmp_path, 2, {**checkpoint_writer.checkpoint_of(2), "hook": lambda: None})
    assert assert_whole(example.newest(tmp_path)) == 1
    example.save(tmp_path, 2, checkpoint_writer.checkpoint_of(2))
    assert assert_whole(example.newest(tmp_path)) == 2


@pytest.mark.parametrize("kept", [0, 1, 3, 100, 0.5, 0.99, -1], ids=str)
def test_a_truncated_file_is_an_error_with_a_remedy(tmp_path: Path, kept: float) -> None:
    path = example.save(tmp_path, 1, checkpoint_writer.checkpoint_of(1))
    data = path.read_bytes()
    size = int(len(data) * kept) if isinstance(kept, float) else kept
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"step-000000001\.pt is truncated .*load the one before"):
        example.load(path)


@pytest.mark.parametrize(
    "content", [torch.ones(3), {"weight": torch.ones(3)}], ids=["tensor", "model"]
)
def test_a_foreign_file_is_an_error(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "step-000000001.pt"
    torch.save(content, path)
    with pytest.raises(
        ValueError, match="is no checkpoint: it must hold step, model and optimizer"
    ):
        example.load(path)


def test_the_example_runs() -> None:
    run = subprocess.run(
        [sys.executable, checkpoint_writer.EXAMPLE], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "the resumed run equals the unbroken one" in run.stdout
    assert "steps 20 to 50" in run.stdout
