"""The file that a run writes: what goes in comes out, also when it was killed or goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from bound_rows import FakeAdaMod

from adamod_fused.tracking import RunLog, read
from adamod_fused.tracking.run_log import FILE


def steps_of(folder: Path) -> list[int]:
    return [entry["step"] for entry in read(folder)]


@pytest.mark.filterwarnings("error")
def test_what_is_logged_is_read(tmp_path):
    optimizer, log = FakeAdaMod(every=2), RunLog(tmp_path / "new" / "run")
    expected = []
    for step in range(1, 5):
        optimizer.step()
        log.log(
            optimizer,
            torch.tensor(1.0 / step, requires_grad=True),
            lr=torch.tensor(0.5),
            epoch=step,
        )
        expected.append(optimizer.bound_stats() if step % 2 else None)
    entries = read(tmp_path / "new" / "run")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in entries] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert [entry["scalars"] for entry in entries] == [
        {"lr": 0.5, "epoch": s} for s in (1, 2, 3, 4)
    ]
    assert [entry.get("rows") for entry in entries] == expected
    assert entries[0]["time"] <= entries[-1]["time"]


def test_without_anything_new_nothing_is_written(tmp_path):
    optimizer, log = FakeAdaMod(every=2), RunLog(tmp_path)
    log.log(optimizer)  # no step yet
    assert not log.path.exists()
    for _ in range(4):
        optimizer.step()
        log.log(optimizer)
        log.log(optimizer)
    assert steps_of(tmp_path) == [1, 3]
    log.log(optimizer, val_loss=2.0, step=7)
    assert read(tmp_path)[-1].keys() == {"step", "time", "scalars"}
    assert steps_of(tmp_path) == [1, 3, 7]


def test_numbers_that_json_has_not_are_null_and_come_back_as_nan(tmp_path):
    optimizer = FakeAdaMod()
    optimizer.step()
    rows = optimizer.bound_stats()
    broken = rows[0] | {"rate_min": math.nan, "grad_norm": math.inf, "bounded": math.nan}
    optimizer.bound_stats = lambda by: [broken, *rows[1:]]
    RunLog(tmp_path).log(optimizer, math.nan, seen=-math.inf)
    text = (tmp_path / FILE).read_text()
    json.loads(text, parse_constant=pytest.fail)
    (entry,) = read(tmp_path)
    assert all(math.isnan(entry["rows"][0][name]) for name in ("rate_min", "grad_norm", "bounded"))
    assert math.isnan(entry["loss"])
    assert math.isnan(entry["scalars"]["seen"])
    assert entry["rows"][0]["index"] == 0
    assert entry["rows"][1] == rows[1]


def test_entries_of_one_step_become_one(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    optimizer.step()
    log.log(optimizer, seen=1)
    log.log(optimizer, 2.0, more=2)
    (entry,) = read(tmp_path)
    assert entry["loss"] == 2.0
    assert entry["scalars"] == {"seen": 1, "more": 2}
    assert entry["rows"] == optimizer.bound_stats()


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    for step in range(6):
        optimizer.step()
        log.log(optimizer, float(step))
    optimizer.steps = 2  # the checkpoint; what came after it did not happen
    resumed = RunLog(tmp_path)
    for _ in range(2):
        optimizer.step()
        resumed.log(optimizer, -1.0)
    entries = read(tmp_path)
    assert [(e["step"], e["loss"]) for e in entries] == [(1, 0), (2, 1), (3, -1), (4, -1)]


def test_a_line_cut_off_by_a_kill_is_left_out_and_then_taken_away(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    for _ in range(3):
        optimizer.step()
        log.log(optimizer)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-40])
    assert steps_of(tmp_path) == [1, 2]
    resumed = RunLog(tmp_path)
    assert steps_of(tmp_path) == [1, 2]
    resumed.log(optimizer)
    assert steps_of(tmp_path) == [1, 2, 3]
    assert len(log.path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "ti'])
def test_a_log_without_a_whole_line_is_empty(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read(tmp_path) == []
    RunLog(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b""


def row_without_dead() -> dict:
    optimizer = FakeAdaMod()
    optimizer.step()
    row = optimizer.bound_stats()[0]
    return {name: value for name, value in row.items() if name != "dead"}


BAD_LINES = {
    '{"step": 2, "loss": ': "Expecting value",
    "[1, 2]": "no object with a whole number as its step",
    '{"loss": 1.0}': "no object with a whole number as its step",
    '{"step": 1.5}': "no object with a whole number as its step",
    json.dumps({"step": 2, "rows": [row_without_dead()]}): "a row lacks dead",
    json.dumps(
        {"step": 2, "rows": [row_without_dead() | {"dead": 0, "rate_hist": [1, 2]}]}
    ): "rate_hist has 2 bins, not 64",
    '{"step": 2, "rows": 3}': "rows are no list",
    '{"step": 2, "rows": [3]}': "a row is no object",
    '{"step": 2, "loss": "low"}': "loss is no number",
    '{"step": 2, "scalars": {"a": [1]}}': "a is no number",
    '{"step": 2, "scalars": 3}': "scalars are no object",
    "\xff": "codec can't decode",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=BAD_LINES.values())
def test_a_bad_line_is_named_with_its_number(tmp_path, line, reason):
    optimizer = FakeAdaMod()
    optimizer.step()
    RunLog(tmp_path).log(optimizer)
    with (tmp_path / FILE).open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(
        ValueError, match=r"line 2 is no entry of a run log: .*remove that line"
    ) as e:
        read(tmp_path)
    assert reason in str(e.value)


def test_folders_without_a_log_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing"):
        read(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"there is no bound_stats.jsonl in .*RunLog\("):
        read(tmp_path)


def test_an_optimizer_without_a_bound_is_refused_before_anything_is_written(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    log = RunLog(tmp_path)
    with pytest.raises(TypeError, match="the optimizer is SGD; train with AdaMod"):
        log.log(optimizer, 1.0)
    assert not log.path.exists()
