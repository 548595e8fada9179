"""A run of the benchmark: its order, its gate, and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_command import BOTH, OURS, bench

from adamod_fused import AdaMod
from adamod_fused.extras import installed
from bench import __main__, gate, record, roofline, run
from bench.clocks import CpuClock
from bench.contestants import BASELINE, Contestant, contestants
from bench.measure import Comparison
from bench.record import LeftOut

pytestmark = pytest.mark.usefixtures("little_effort")

CPU = torch.device("cpu")
FIGURES = {"bench-cpu-size.png", "bench-cpu-host.png"}


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
