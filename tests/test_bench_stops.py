"""What stops a run of the benchmark, and what it leaves behind: Ctrl-C, the end of its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_command import BOTH, bench

import adamod_fused
from bench import gate, record, run
from bench.contestants import Contestant
from bench.measure import Comparison
from bench.record import Record

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("little_effort")

LISTS_OF_STOPPED = "tensors-1,tensors-10,tensors-100,size-1e3"


@pytest.mark.parametrize("where", ["make_grads", "record"])
def test_ctrl_c_leaves_a_record_of_what_was_measured(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    round_, save = Comparison.round, record.save

    def interrupted_round(self: Comparison) -> None:
        if self._params.name == "tensors-100":
            raise KeyboardInterrupt
        round_(self)

    def interrupted_save(made: Record, path: Path) -> None:
        if len(made.results) == 6 and not made.left_out:
            with monkeypatch.context() as patched:
                patched.setattr(Path, "replace", stop)  # the file is written, and not yet renamed
                save(made, path)
        save(made, path)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if where == "record":
        monkeypatch.setattr(record, "save", interrupted_save)
    else:
        monkeypatch.setattr(Comparison, "round", interrupted_round)
    code, made = bench(tmp_path, "--contestants", BOTH, lists=LISTS_OF_STOPPED)
    assert code == 130
    assert not made.complete
    assert {r.list for r in made.results} >= {"tensors-1", "tensors-10"}
    reasons = {(entry.list, entry.contestant): entry.reason for entry in made.left_out}
    assert reasons["size-1e3", run.EVERYONE] == "stopped by Ctrl-C"
    assert "stopped by Ctrl-C" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_stops_by_itself_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def endless(contestant: Contestant, shapes: Any, *_: Any) -> None:
        while len(shapes) == 100:
            with contextlib.suppress(Exception):  # as a careless library
                time.sleep(60)

    monkeypatch.setattr(gate, "differs", endless)
    start = time.monotonic()
    code, made = bench(tmp_path, "--contestants", BOTH, "--minutes", "0.05", lists=LISTS_OF_STOPPED)
    assert time.monotonic() - start < 20
    assert code == 0
    assert not made.complete
    assert {r.list for r in made.results} == {"tensors-1", "tensors-10"}
    assert [(entry.list, entry.reason) for entry in made.left_out] == [
        ("tensors-100", "--minutes 0.05 were over"),
        ("size-1e3", "--minutes 0.05 were over"),
    ]
    assert "--minutes 0.05 were over" in capsys.readouterr().out
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_alarm_rings_again_where_a_library_swallowed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "SECONDS_TO_RING_AGAIN", 0.1)

    def sleep_twice() -> None:
        with run._alarm(minutes=0.001):
            with contextlib.suppress(BaseException):
                time.sleep(60)
            time.sleep(60)

    with pytest.raises(run.OutOfTime):
        sleep_twice()


def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    """From another folder, the package and the benchmark on two paths, as `make gpu` has it."""
    package = Path(adamod_fused.__file__).resolve().parent.parent
    environment = {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "bench", "--device", "cpu", "--out", "out"]
    command += ["--contestants", BOTH, "--lists", "tensors-10,size-1e6,size-1e7,gpt2-124m"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with the signal ignored, children included.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("tensors-10 float32: "):
                process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    assert code == 130, "".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    made = record.load(tmp_path / "out" / "bench-cpu.json")
    assert not made.complete
    assert "tensors-10" in {r.list for r in made.results}
    assert any(entry.reason == "stopped by Ctrl-C" for entry in made.left_out)
