"""A run of the benchmark: its order, its gate, what stops it, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import adamod_fused
from adamod_fused import AdaMod
from adamod_fused.extras import installed
from bench import __main__, gate, plan, record, roofline, run
from bench.clocks import CpuClock
from bench.contestants import BASELINE, NAMES, SLOW_START, Contestant, contestants
from bench.lists import LISTS
from bench.measure import Comparison, Effort
from bench.record import LeftOut, Record

CPU = torch.device("cpu")
OURS = "adamod_fused cpu"
BOTH = f"{OURS},{BASELINE}"
FIGURES = {"bench-cpu-size.png", "bench-cpu-host.png"}
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plan, "EFFORT", {"cpu": Effort(seconds=1e-9, rounds=2)})
    monkeypatch.setattr(roofline, "LARGEST", {"cpu": 1 << 20})
    monkeypatch.setattr(run, "SECONDS_TO_FINISH", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine several would wait for each other
    yield
    torch.set_num_threads(before)


def bench(out: Path, *arguments: str, lists: str = "tensors-10") -> tuple[int, Record]:
    """The exit code of a run on a few lists, and its record."""
    options = ["--out", str(out), "--lists", lists, "--dtypes", "float32"]
    code = __main__.main(["--device", "cpu", *options, *arguments])
    return code, record.load(out / "bench-cpu.json")


def test_a_run_records_prints_and_draws(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "folder"
    lists = ("tensors-1", "tensors-10", "tensors-100", "size-1e3", "size-1e4", "small-1000")
    code, made = bench(out, "--contestants", BOTH, "--commit", "c0ffee", lists=",".join(lists))
    assert code == 0
    assert made.complete
    assert (made.device, made.quick, made.commit) == ("cpu", False, "c0ffee")
    assert [(r.list, r.contestant) for r in made.results] == [
        (name, contestant) for name in lists for contestant in (OURS, BASELINE)
    ]
    assert made.lists["small-1000"].tensors == 1000
    assert made.lists["small-1000"].elements == 64_000
    for result in made.results:
        # The least: a step in each round, of the baseline one more beside the other contestant.
        assert result.step_ms.n == (2 if result.contestant == OURS else 4)
        assert result.bytes_per_param == (36 if result.contestant == OURS else 28)
        assert result.share_of_copy == pytest.approx(
            result.GB_per_s / made.copy_GB_per_s.median, rel=1e-5
        )
        assert (result.kernel_us is not None) == (result.contestant == OURS)
        assert result.host_us.median > 0
    assert {r.over_adam for r in made.results if r.contestant == BASELINE} == {1.0}
    assert [(fit.contestant, fit.against) for fit in made.fits] == [
        (OURS, "tensors"),
        (BASELINE, "tensors"),
    ]
    assert {"cpu", "cores", "threads", "memory_GiB", "gpu", "driver"} <= made.machine.keys()
    assert {"python", "torch", "triton", "adamod_fused"} <= made.versions.keys()
    assert made.versions["torch"] == torch.__version__

    figures = FIGURES if installed("matplotlib") else set()
    assert {path.name for path in out.iterdir()} == {"bench-cpu.json", *figures}
    shown = capsys.readouterr().out
    for words in (
        "small-1000, float32: 1,000 tensors, 64,000 elements",
        OURS,
        "x Adam",
        "slope ns",
    ):
        assert words in shown
    assert f"record: {out / 'bench-cpu.json'}" in shown


def test_absent_contestants_are_named_with_the_reason(tmp_path: Path, capsys: Any) -> None:
    code, made = bench(tmp_path, "--contestants", f"{BASELINE},apex FusedAdam")
    assert code == 0
    assert "not on cpu" in made.absent["apex FusedAdam"]
    assert [r.contestant for r in made.results] == [BASELINE]
    assert f"absent: apex FusedAdam: {made.absent['apex FusedAdam']}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        bench(tmp_path / "none", "--contestants", "apex FusedAdam")
    assert stopped.value.code == 2
    assert "none of the contestants works here: apex FusedAdam: " in capsys.readouterr().err


def test_what_a_contestant_does_not_serve_is_left_out_with_the_reason(tmp_path: Path) -> None:
    options = ["--contestants", f"{OURS},torch Adam foreach", "--dtypes", "float16"]
    _, made = bench(tmp_path, *options)
    assert [r.contestant for r in made.results] == [OURS]
    (entry,) = made.left_out
    assert (entry.list, entry.contestant, entry.dtype) == (
        "tensors-10",
        "torch Adam foreach",
        "float16",
    )
    assert "float16" in entry.reason


def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The lists that are timed from here on, with their contestants."""
    seen = []
    start = Comparison.__init__

    def spy(self: Comparison, params: Any, dtype: Any, clock: Any, group: Any) -> None:
        seen.append((params.name, [contestant.name for contestant in group]))
        start(self, params, dtype, clock, group)

    monkeypatch.setattr(Comparison, "__init__", spy)
    return seen


def test_a_red_gate_refuses_to_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def differs(contestant: Contestant, shapes: Any, *_: Any) -> str | None:
        return "exp_avg differs in 3 of 640 elements" if len(shapes) == 10 else None

    monkeypatch.setattr(gate, "differs", differs)
    seen = compared(monkeypatch)
    code, made = bench(tmp_path, "--contestants", BOTH, lists="tensors-1,tensors-10,tensors-100")
    assert code == 1
    assert seen == [
        ("tensors-1", [OURS, BASELINE]),
        ("tensors-10", [BASELINE]),
        ("tensors-100", [OURS, BASELINE]),
    ]
    assert made.complete
    assert made.find("tensors-10", OURS, "float32") is None
    reason = "red gate: exp_avg differs in 3 of 640 elements"
    assert made.left_out == (LeftOut("tensors-10", OURS, "float32", reason),)
    assert "RED GATE, not timed: adamod_fused cpu on tensors-10 float32" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["one bit", "raises"])
def test_the_gate_is_the_real_one(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(params: Any) -> AdaMod:
        if broken == "raises":
            raise RuntimeError("no kernel")
        optimizer = AdaMod(params, backend="cpu")
        last = params[-1].detach().view(torch.int32)
        optimizer.register_step_post_hook(lambda *_: last[-1:].bitwise_xor_(1))
        return optimizer

    ours = Contestant(OURS, "adamod_fused", make, lambda *_: None, ours=True)
    monkeypatch.setattr(run, "contestants", lambda *_: ([ours], {}))
    code, made = bench(tmp_path)
    assert code == 1
    assert made.results == ()
    words = (
        "red gate: param differs in 1 of 640" if broken == "one bit" else "RuntimeError: no kernel"
    )
    assert words in made.left_out[0].reason


def test_ours_failing_after_the_gate_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CpuClock, "peak_bytes", lambda self, work: 1 // 0)
    code, made = bench(tmp_path, "--contestants", OURS)
    assert code == 1
    assert made.left_out[0].reason.startswith("ZeroDivisionError")


def test_ours_that_should_work_here_and_does_not_is_no_mere_absence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adam, _ = contestants(CPU, [BASELINE])
    absent = {OURS: "does not work here: TypeError", "adamod_fused cuda": "not on cpu"}
    monkeypatch.setattr(run, "contestants", lambda *_: (adam, absent))
    code, made = bench(tmp_path)
    assert (code, made.absent) == (1, absent)
    del absent[OURS]
    assert bench(tmp_path)[0] == 0


def test_what_does_not_fit_in_memory_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CpuClock, "free_bytes", lambda self: 10 << 20)
    code, made = bench(tmp_path, "--contestants", BASELINE, lists="size-1e3,size-1e6")
    assert code == 0
    assert [r.list for r in made.results] == ["size-1e3"]
    (entry,) = made.left_out
    assert (entry.list, entry.contestant) == ("size-1e6", run.EVERYONE)
    assert "GiB of memory" in entry.reason


def test_groups_are_measured_one_after_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = ["torch Adam foreach", "torch AdamW fused"]
    seen = compared(monkeypatch)
    monkeypatch.setattr(CpuClock, "free_bytes", lambda self: 82 << 20)
    _, made = bench(tmp_path, "--contestants", ",".join([BASELINE, *others]), lists="size-1e6")
    assert seen == [("size-1e6", [BASELINE, other]) for other in others]
    assert [r.contestant for r in made.results] == [BASELINE, *others]
    assert all(r.over_adam for r in made.results)


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
            path.with_suffix(".partial").write_text("{")
            raise KeyboardInterrupt
        save(made, path)

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


FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_matters_most_comes_first(device: str) -> None:
    jobs = plan.jobs(device, [FP32, BF16])
    assert len(set(jobs)) == len(jobs)
    names = [job.params.name for job in jobs]
    first = plan.FIRST[device]
    assert jobs[:4] == [plan.Job(LISTS[name], FP32) for name in first]
    sweeps = [job for job in jobs if job.params.name.startswith(("size-", "tensors-"))]
    assert jobs[4 : 4 + len(sweeps)] == sweeps
    assert jobs[4 + len(sweeps) :][:4] == [plan.Job(LISTS[name], BF16) for name in first]
    assert {job.dtype for job in sweeps} == {FP32}
    largest = {"cpu": "size-1e8", "cuda": "size-1e9"}[device]
    assert [job.params.name for job in sweeps][:-5][-1] == largest
    for name, params in LISTS.items():
        assert names.count(name) == (2 if device in params.devices else 0)


def test_what_launches_for_every_tensor_gets_few_tensors_on_a_gpu() -> None:
    slow = Contestant("", "", lambda _: None, lambda *_: None, one_by_one=True)
    few, many = (plan.Job(LISTS[name], FP32) for name in ("gpt2-124m", "small-10000"))
    assert plan.unfit(slow, few, torch.device("cuda")) is None
    assert "each of 10,000 tensors" in plan.unfit(slow, many, torch.device("cuda"))
    assert plan.unfit(slow, many, CPU) is None


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
    assert {job.dtype for job in quick.jobs} == {FP32}
    assert sum(job.params.numel for job in quick.jobs) < 30e6
    assert {job.params.name for job in quick.jobs} >= {"resnet50", "size-1e6", "tensors-1000"}
    # What compiles for long is not made at all, and named as absent.
    assert {*quick.contestants} == {*NAMES} - {*SLOW_START} == {*NAMES} - {*quick.absent}


def test_contestants_that_compile_for_each_shape_get_few_shapes() -> None:
    slow = Contestant(
        "", "", lambda _: None, lambda *_: None, slow_start="it compiles", slow_for_each_shape=True
    )
    fit = plan.Job(LISTS["small-1000"], FP32)
    unfit = plan.Job(LISTS["resnet50"], FP32)
    assert plan.unfit(slow, fit, CPU) is None
    assert plan.unfit(slow, unfit, CPU) == "it compiles; the list has 28 shapes"
    assert plan.unfit(slow, unfit, CPU, patient=True) is None


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


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "LARGEST", {"cuda": 1 << 28})
    code = __main__.main(
        [
            *("--device", "cuda", "--quick", "--lists", "small-1000,resnet50"),
            *("--contestants", "adamod_fused cuda,adamod_fused triton,torch Adam fused"),
            *("--out", str(tmp_path)),
        ]
    )
    made = record.load(tmp_path / "bench-cuda.json")
    assert code == 0
    assert made.complete
    for backend in ("cuda", "triton"):
        result = made.find("resnet50", f"adamod_fused {backend}", "float32")
        assert result.launches == 1
        assert result.wall_us.median > 0
        assert result.peak_bytes is not None
