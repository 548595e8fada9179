"""The benchmark's command line: bad input, what is not there, and what --quick asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_command import bench

from bench import __main__, plan, run
from bench.contestants import BASELINE, NAMES, SLOW_START

pytestmark = pytest.mark.usefixtures("little_effort")


def test_without_matplotlib_the_figures_can_be_drawn_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(__main__, "installed", lambda package: False)
    code, _ = bench(tmp_path, "--contestants", BASELINE, lists="size-1e3,size-1e4")
    path = tmp_path / "bench-cpu.json"
    assert code == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    shown = capsys.readouterr().out
    assert "matplotlib is missing: pip install" in shown
    assert f"python -m bench figures {path}" in shown
    assert __main__.main(["figures", str(path)]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lists gpt5", "no list is called 'gpt5'; there are gpt2-124m, "),
        ("--lists resnet50,", "no list is called ''"),
        ("--contestants Adam", "no contestant is called 'Adam'; there are adamod_fused cpu, "),
        ("--dtypes float8", "no dtype is called 'float8'; there are float32, bfloat16, "),
        ("--minutes 0", "must be a positive number, got 0"),
        ("--minutes soon", "must be a positive number, got soon"),
        ("--minutes inf", "must be a positive number, got inf"),
        ("--device tpu", "invalid choice: 'tpu'"),
        ("--fast", "unrecognized arguments: --fast"),
        ("--out {file}", "File exists"),
        ("--out {file}/below", "Not a directory"),
        ("draw", "invalid choice: 'draw'"),
        ("figures", "RECORD"),
        ("figures none.json", "No such file"),
        ("figures {file}", "file: "),
    ],
)
def test_bad_input_exits_2_before_any_work(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.BenchmarkRun, "go", lambda self: pytest.fail("it went to work"))
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments.format(file="file").split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--device", "cuda", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "torch can use no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quick_run_is_short_and_stops_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[Any] = []

    def stop(given: Any, *_: Any) -> None:
        settings.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "BenchmarkRun", stop)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    assert __main__.main(["--device", "cpu", "--quick"]) == 130
    assert __main__.main(["--device", "cpu", "--quick", "--minutes", "2"]) == 130
    quick, longer = settings
    assert (quick.quick, quick.minutes, longer.minutes) == (True, 1, 2)
    assert quick.effort == plan.QUICK_EFFORT
    assert {job.dtype for job in quick.jobs} == {torch.float32}
    assert sum(job.params.numel for job in quick.jobs) < 30e6
    assert {job.params.name for job in quick.jobs} >= {"resnet50", "size-1e6", "tensors-1000"}
    # What compiles for long is not made at all, and named as absent.
    assert {*quick.contestants} == {*NAMES} - {*SLOW_START} == {*NAMES} - {*quick.absent}
