"""The profile of a step's host time: its parts, what is inside them, and the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adamod_fused.backends.cpu import CpuBackend
from adamod_fused.console import open_console
from adamod_fused.plan import Plan
from bench import check, host, record
from bench.lists import ParamList
from bench.record import RESULTS
from bench.work import Work

SMALL = ParamList("small", ((64,),) * 20, "made up")


def test_parts_are_told_apart() -> None:
    """Every part takes a time of its own, on a clock that stands still but for them."""
    now = 100.0

    def take(seconds: float) -> None:
        nonlocal now
        now += seconds

    edges = host.Edges(lambda: now)
    refresh = edges.timed("refresh", lambda: take(1))
    kernel = edges.timed("kernel", lambda: take(4))

    def run_all() -> None:
        take(2)
        kernel()
        take(8)

    run = edges.timed("run", run_all)

    def whole_step() -> str:
        take(16)
        refresh()
        take(32)
        run()
        take(64)
        return "loss"

    assert edges.timed("step", whole_step)() == "loss"
    expected = {"refresh": 1, "scalars": 2, "kernel": 4, "advance": 8, "rest": 112, "step": 127}
    assert edges.parts() == expected


@pytest.mark.parametrize(("new_grads", "made"), [(False, 1), (True, 1 + host.WARM_UP + 3)])
def test_gradients_are_kept_or_new(
    new_grads: bool, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Plan.refresh, Plan.run, CpuBackend.launcher
    calls = []
    make_grads: Callable[[Work], None] = Work.make_grads
    monkeypatch.setattr(Work, "make_grads", lambda self: (calls.append(self), make_grads(self)))
    parts = host.measure(SMALL, new_grads, steps=3)
    assert len(calls) == made
    assert list(parts) == list(host.PARTS)
    for *parts_of_step, step in zip(*parts.values(), strict=True):
        assert all(part > 0 for part in parts_of_step)
        assert sum(parts_of_step) == pytest.approx(step)
    assert len(parts["step"]) == 3
    assert (Plan.refresh, Plan.run, CpuBackend.launcher) == before


def test_the_command_prints_and_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(host, "PARAMS", SMALL)
    out = tmp_path / "new"
    assert host.main(["--out", str(out), "--steps", "2", "--commit", "c0ffee"]) == 0
    assert [path.name for path in out.iterdir()] == ["host-cpu.json"]
    made = host.load(out / "host-cpu.json")
    assert (made.commit, made.tensors, made.elements) == ("c0ffee", 20, 1280)
    assert {"cpu", "threads", "load"} <= made.machine.keys()
    assert {"python", "torch", "adamod_fused"} <= made.versions.keys()
    assert list(made.ns_per_tensor) == ["kept", "new"]
    assert {s.n for parts in made.ns_per_tensor.values() for s in parts.values()} == {
        2 * host.ROUNDS
    }
    for grads, parts in made.quietest_ns_per_tensor.items():
        assert list(parts) == list(host.PARTS)
        assert parts["step"] <= made.ns_per_tensor[grads]["step"].median
    shown = capsys.readouterr().out
    for part in host.PARTS:
        assert part in shown
        assert host.three_digits(made.ns_per_tensor["new"][part].median) in shown
    assert f"record: {out / 'host-cpu.json'}" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "must be a whole number of at least 1, got 0"),
        (["--steps", "many"], "must be a whole number of at least 1, got many"),
        (["--out", "file"], "File exists"),
    ],
)
def test_bad_input_exits_2_before_any_work(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host, "profile", lambda *_: pytest.fail("it went to work"))
    with pytest.raises(SystemExit) as stopped:
        host.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_committed_records_are_valid() -> None:
    for path in RESULTS.glob("host-*.json"):
        record = host.load(path)
        assert record.schema == host.SCHEMA
        assert {tuple(parts) for parts in record.ns_per_tensor.values()} == {tuple(host.PARTS)}


def with_quietest(made: host.HostRecord, step: float, kernel: float) -> host.HostRecord:
    parts = dict.fromkeys(host.PARTS, 1.0) | {"step": step, "kernel": kernel}
    return replace(made, quietest_ns_per_tensor={"kept": {}, "new": parts})


@pytest.mark.parametrize(("step", "met"), [(350.0, True), (350.5, False)])
def test_the_target_is_the_step_without_the_kernel(
    step: float, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made = with_quietest(host.profile(SMALL, 1, None), step, kernel=50.0)
    record.save_json(asdict(made), tmp_path / "host-cpu.json")
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert check.check([], open_console()) == (0 if met else 1)
    shown = capsys.readouterr().out
    assert "above the kernel" in shown
    assert ("SHORT" in shown) != met


def test_the_quietest_round_is_the_one_with_the_shortest_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])
    monkeypatch.setattr(host, "ROUNDS", 3)
    monkeypatch.setattr(host, "measure", lambda *_: dict.fromkeys(host.PARTS, [next(rounds)] * 3))
    made = host.profile(SMALL, 3, None)
    assert made.quietest_ns_per_tensor["kept"]["step"] == 1.0
    assert made.quietest_ns_per_tensor["new"]["step"] == 10.0
    assert made.ns_per_tensor["new"]["step"].median == 20.0
