"""What saving and loading costs: how it is measured, recorded and held to a target."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adamod_fused import AdaMod
from adamod_fused.console import open_console
from adamod_fused.formats import STATE_FORMATS
from bench import check, record, saving
from bench.lists import ParamList
from bench.record import RESULTS, Spread

SMALL = ParamList("small", ((64, 65),) * 2, "made up")


def test_the_command_prints_and_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(saving, "PARAMS", SMALL)
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "new"
    assert saving.main(["--out", str(out), "--rounds", "2", "--commit", "c0ffee"]) == 0
    assert [path.name for path in out.iterdir()] == ["saving-cpu.json"]
    made = saving.load(out / "saving-cpu.json")
    assert (made.commit, made.list, made.tensors, made.elements) == ("c0ffee", "small", 2, 8320)
    assert {"cpu", "threads", "load"} <= made.machine.keys()
    assert list(made.costs) == list(STATE_FORMATS)
    for cost in made.costs.values():
        assert list(cost.steps) == list(saving.OPERATIONS)
        assert all(spread.min > 0 and spread.n == 2 for spread in cost.steps.values())
    shown = capsys.readouterr().out
    for operation in saving.OPERATIONS.values():
        assert operation in shown
    assert f"record: {out / 'saving-cpu.json'}" in shown.replace("\n", "")


def test_operations_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the operations alone move, by known times."""
    now = 0.0

    def moves(name: str, seconds: float) -> None:
        call = getattr(AdaMod, name)

        def moved(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return call(*arguments)

        monkeypatch.setattr(AdaMod, name, moved)

    for name, seconds in (
        ("step", 0.5),
        ("state_dict", 1.0),
        ("load_state_dict", 2.0),
        ("check_finite", 4.0),
    ):
        moves(name, seconds)
    monkeypatch.setattr(saving.time, "perf_counter", lambda: now)
    cost = saving.measure(SMALL, "8bit", rounds=3)
    assert cost.step_ms.median == 500
    found = {name: spread.median for name, spread in cost.steps.items()}
    assert found == {"save": 2, "load": 4, "check": 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "must be a whole number of at least 1"),
        (["--out", "file"], "File exists"),
    ],
)
def test_bad_input_exits_2_before_any_work(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saving, "profile", lambda *_: pytest.fail("it went to work"))
    with pytest.raises(SystemExit) as stopped:
        saving.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_committed_records_are_valid() -> None:
    for path in RESULTS.glob("saving-*.json"):
        made = saving.load(path)
        assert made.schema == saving.SCHEMA
        assert list(made.costs) == list(STATE_FORMATS)


@pytest.mark.parametrize("dear", ["save", "load"])
@pytest.mark.parametrize(("steps", "met"), [(4.99, True), (5.01, False)])
def test_the_target_is_of_the_dearest(
    dear: str, steps: float, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    one = Spread.of([1.0])
    cheap = saving.Cost(one, {"save": one, "load": one, "check": Spread.of([99.0])})
    costs = {"fp32": cheap, "8bit": saving.Cost(one, {**cheap.steps, dear: Spread.of([steps])})}
    monkeypatch.setattr(saving, "STATE_FORMATS", {})
    made = replace(saving.profile(SMALL, 1, None), costs=costs)
    record.save_json(asdict(made), tmp_path / "saving-cpu.json")
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert check.check([], open_console()) == (0 if met else 1)
    shown = capsys.readouterr().out
    assert saving.TARGET.what in shown
    assert ("SHORT" in shown) != met
