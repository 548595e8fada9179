"""What looking at the bound costs: how it is measured, computed, recorded and held to a target."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from adamod_fused import AdaMod
from adamod_fused.bound_stats import EVERY
from adamod_fused.console import open_console
from bench import check, record, tracking
from bench.lists import LISTS, ParamList
from bench.record import RESULTS, Spread

SMALL = ParamList("small", ((64,),) * 20, "made up")


def cost(ratio: float) -> tracking.Cost:
    one = Spread.of([1.0])
    return tracking.Cost(20, 1280, one, one, one, Spread.of([ratio]))


@pytest.mark.parametrize(
    ("ratio", "average", "least_every"),
    [(6.0, 1.05, 100), (6.06, 1.0506, 102), (1.0, 1.0, 1), (0.9, 0.999, 1), (1.05, 1.0005, 1)],
)
def test_an_average_step(ratio: float, average: float, least_every: int) -> None:
    assert cost(ratio).average(100) == pytest.approx(average)
    assert cost(ratio).average_when_read(100) == pytest.approx(average + 0.01)  # a read: one step
    assert cost(ratio).least_every == least_every


def test_steps_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = AdaMod.step
    monkeypatch.setattr(
        AdaMod, "step", lambda self: (seen.append(self._tracker.every), step(self))[1]
    )
    found = tracking.measure(SMALL, pairs=3)
    assert seen[tracking.WARM_UP :] == [0, 1] * 3
    assert (found.tensors, found.elements, found.seen_over_plain.n) == (20, 1280, 3)
    assert found.read_ms.min > 0


def test_the_command_prints_and_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setitem(LISTS, "small", SMALL)
    monkeypatch.setattr(tracking, "NAMES", ("small",))
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "new"
    assert tracking.main(["--out", str(out), "--pairs", "2", "--commit", "c0ffee"]) == 0
    assert [path.name for path in out.iterdir()] == ["tracking-cpu.json"]
    made = tracking.load(out / "tracking-cpu.json")
    assert (made.schema, made.commit, made.every) == (tracking.SCHEMA, "c0ffee", EVERY)
    assert {"cpu", "threads", "load"} <= made.machine.keys()
    assert {"python", "torch", "adamod_fused"} <= made.versions.keys()
    shown = capsys.readouterr().out
    for average in (made.costs["small"].average, made.costs["small"].average_when_read):
        assert f"{average(EVERY):.3f}" in shown
    assert f"target <= {tracking.MOST_COST}" in shown
    assert f"record: {out / 'tracking-cpu.json'}" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "must be a whole number of at least 1"),
        (["--out", "file"], "File exists"),
    ],
)
def test_bad_input_exits_2_before_any_work(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "profile", lambda *_: pytest.fail("it went to work"))
    with pytest.raises(SystemExit) as stopped:
        tracking.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_committed_records_are_valid() -> None:
    for path in RESULTS.glob("tracking-*.json"):
        made = tracking.load(path)
        assert made.schema == tracking.SCHEMA
        assert tuple(made.costs) == tracking.NAMES


@pytest.mark.parametrize(("ratio", "met"), [(5.99, True), (6.01, False)])
def test_the_target_is_of_the_dearest_list(
    ratio: float, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made = tracking.profile((), 1, None)
    made = replace(made, every=100, costs={"cheap": cost(2.0), "dear": cost(ratio)})
    record.save_json(asdict(made), tmp_path / "tracking-cpu.json")
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert check.check([], open_console()) == (0 if met else 1)
    shown = capsys.readouterr().out
    assert tracking.TARGET.what in shown
    assert ("SHORT" in shown) != met
