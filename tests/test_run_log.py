"""The file that a run writes: what goes in comes out, also when it was killed or goes on."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from bound_rows import FakeAdaMod
from torch import nn

from adamod_fused import AdaMod
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
    optimizer.bound_stats = lambda by, after: [broken, *rows[1:]]
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


def step_with(optimizer: AdaMod, *params: nn.Parameter) -> None:
    """A step in which only these have gradients."""
    optimizer.zero_grad()
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()


def losses_of(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in read(folder)}


def test_tensors_without_gradients_at_times_do_not_set_the_step_back(tmp_path):
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, log = AdaMod([first, second], track_bound=4), RunLog(tmp_path)
    for step in range(1, 13):
        step_with(optimizer, second, *([first] if step % 2 else []))
        log.log(optimizer, step)
    assert losses_of(tmp_path) == {step: step for step in range(1, 13)}
    entries = {entry["step"]: entry["rows"] for entry in read(tmp_path) if "rows" in entry}
    assert {step: [row["step"] for row in rows] for step, rows in entries.items()} == {
        1: [1, 1], 5: [3, 5], 9: [5, 9],
    }  # fmt: skip


def test_the_step_that_is_given_is_that_of_the_rows_too(tmp_path):
    """Parameters that come later count from 1, and skipped steps are not counted."""
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, log = AdaMod([early], track_bound=5), RunLog(tmp_path)
    for step in range(1, 31):
        if step == 16:
            optimizer.add_param_group({"params": [late]})
        optimizer.found_inf = torch.tensor(float(step in (2, 3, 17)))
        step_with(optimizer, early if step < 16 else late)
        log.log(optimizer, step, step=step)
    assert losses_of(tmp_path) == {step: step for step in range(1, 31)}
    tracked = {e["step"]: e["rows"][0]["step"] for e in read(tmp_path) if "rows" in e}
    assert tracked == {1: 1, 6: 4, 11: 9, 16: 1, 21: 5, 26: 10}


@pytest.mark.parametrize("which", ["one made in mid-run", "one in each step"])
def test_a_new_log_writes_the_step_of_now(tmp_path, which):
    param = nn.Parameter(torch.ones(3))
    optimizer, log = AdaMod([param], track_bound=10), RunLog(tmp_path)
    for step in range(1, 19):
        if which == "one in each step" or step == 15:
            log = RunLog(tmp_path)
        step_with(optimizer, param)
        log.log(optimizer, step)
    assert losses_of(tmp_path) == {step: step for step in range(1, 19)}


def test_a_rollback_in_the_process_overwrites(tmp_path):
    param = nn.Parameter(torch.ones(3))
    optimizer, log = AdaMod([param], track_bound=5), RunLog(tmp_path)
    for step in range(1, 11):
        if step == 6:
            checkpoint = copy.deepcopy(optimizer.state_dict())
        step_with(optimizer, param)
        log.log(optimizer, step)
    optimizer.load_state_dict(checkpoint)
    param.grad.fill_(7.0)
    optimizer.step()
    log.log(optimizer, -1)
    assert losses_of(tmp_path) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: -1}
    (row,) = read(tmp_path)[-1]["rows"]
    assert row["grad_norm"] == pytest.approx(math.hypot(7, 7, 7))


NO_NUMBERS = {
    "a torch.float32 tensor of shape (2,)": torch.ones(2),
    "'low'": "low",
    "[1.0]": [1.0],
    "array([1., 1.])": np.ones(2),
    "a torch.complex64 tensor of shape ()": torch.tensor(1j),
}


@pytest.mark.parametrize(("given", "value"), NO_NUMBERS.items(), ids=NO_NUMBERS)
def test_what_is_no_number_is_named_and_loses_no_rows(tmp_path, given, value):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    optimizer.step()
    for name in ("loss", "val"):
        with pytest.raises(TypeError) as raised:
            log.log(optimizer, **{name: value})
        message = f"{name} must be a number or a tensor of one element, got {given}"
        assert str(raised.value) == message
    with pytest.raises(TypeError, match=r"step must be a whole number, got 1\.5"):
        log.log(optimizer, 1.0, step=1.5)
    with pytest.raises(ValueError, match=r"step must fit in 64 bits, got 1000000000.*"):
        log.log(optimizer, 1.0, step=10**30)
    assert not log.path.exists()
    log.log(optimizer, loss=np.float32(1), step=np.int64(1), val=torch.ones(1, 1))
    (entry,) = read(tmp_path)
    assert entry["rows"] == optimizer.bound_stats()
    assert (entry["step"], entry["loss"], entry["scalars"]) == (1, 1.0, {"val": 1.0})


def test_a_full_disk_leaves_the_file_whole_and_loses_no_rows(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    optimizer.step()
    log.log(optimizer)
    before = log.path.read_bytes()
    optimizer.step()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        with pytest.raises(OSError, match="File too large"):
            log.log(optimizer, 2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.path.read_bytes() == before
    log.log(optimizer, 2.0)
    assert [entry["rows"][0]["step"] for entry in read(tmp_path)] == [1, 2]
    assert read(tmp_path)[-1]["loss"] == 2.0


def test_a_line_cut_off_by_a_kill_stays_and_is_not_read(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    for _ in range(3):
        optimizer.step()
        log.log(optimizer)
    log.path.write_bytes(log.path.read_bytes()[:-40])
    cut = log.path.read_bytes()
    assert steps_of(tmp_path) == [1, 2]
    resumed = RunLog(tmp_path)
    assert log.path.read_bytes() == cut
    resumed.log(optimizer)
    assert steps_of(tmp_path) == [1, 2, 3]
    assert log.path.read_bytes().startswith(cut + b" (cut off)\n{")


def test_a_last_line_without_a_newline_is_read_and_kept(tmp_path):
    """As some editors leave it."""
    (tmp_path / FILE).write_bytes(b'{"step": 1, "loss": 2.0}')
    assert losses_of(tmp_path) == {1: 2.0}
    RunLog(tmp_path).log(FakeAdaMod(), 3.0, step=2)
    assert losses_of(tmp_path) == {1: 2.0, 2: 3.0}


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[None]:
    """Another process has done ``work``, and lives on until the block ends."""
    done, lives = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
        os.write(done[1], b"!")
        os.read(lives[0], 1)
        os._exit(0)
    os.read(done[0], 1)
    yield
    os.write(lives[1], b"!")
    os.waitpid(child, 0)
    for end in (*done, *lives):
        os.close(end)


def test_another_process_in_the_folder_is_noticed_and_loses_no_rows(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    optimizer.step()
    with forked(lambda: log.log(optimizer, 1.0)):
        before = log.path.read_bytes()
        with pytest.raises(RuntimeError, match=r"another process logs into .*; give each run a"):
            log.log(optimizer, 2.0)
        assert log.path.read_bytes() == before
    log.log(optimizer, 2.0)
    first, second = map(json.loads, log.path.read_bytes().splitlines())
    assert (first["loss"], second["loss"]) == (1.0, 2.0)
    assert first["rows"] == second["rows"] == optimizer.bound_stats()


def test_a_forked_process_leaves_the_folder_to_its_parent(tmp_path):
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    log.log(optimizer, 1.0, step=1)
    with forked(lambda: log.log(optimizer, -1.0, step=2)):
        log.log(optimizer, 3.0, step=3)
    assert losses_of(tmp_path) == {1: 1.0, 3: 3.0}


def test_a_line_that_the_run_ends_meanwhile_is_left_to_the_next_reader(tmp_path, monkeypatch):
    @contextmanager
    def open_growing(*_: object) -> Iterator[Iterator[bytes]]:
        """As a file gives lines whose last one grows between two reads."""
        yield iter([b'{"step": 1, "loss": 1.0}\n', b'{"step": 2, "lo', b'ss": 2.0}\n'])

    (tmp_path / FILE).touch()
    monkeypatch.setattr(Path, "open", open_growing)
    assert losses_of(tmp_path) == {1: 1.0}


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "ti'])
def test_a_log_without_a_whole_line_is_empty(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read(tmp_path) == []
    RunLog(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def line_of_a_row(**changed) -> str:
    """A tracked step whose one row has these columns in place of its own; None is without."""
    optimizer = FakeAdaMod()
    optimizer.step()
    row = optimizer.bound_stats()[0] | changed
    return json.dumps({"step": 2, "rows": [{k: v for k, v in row.items() if v is not None}]})


BAD_LINES = {
    '{"step": 2, "loss": ': "Expecting value",
    "[1, 2]": "no object with a whole number as its step",
    '{"loss": 1.0}': "no object with a whole number as its step",
    '{"step": 1.5}': "no object with a whole number as its step",
    line_of_a_row(dead=None): "a row lacks dead",
    line_of_a_row(rate_hist=[1, 2]): "rate_hist has 2 bins, not 64",
    line_of_a_row(rate_hist=3): "rate_hist is no list of whole numbers",
    line_of_a_row(bounded_rate_hist=[0.5] * 64): "bounded_rate_hist is no list of whole numbers",
    line_of_a_row(name=[1]): "name is no string",
    line_of_a_row(numel=1.5): "numel is no whole number",
    line_of_a_row(nonfinite="1"): "nonfinite is no whole number",
    line_of_a_row(bounded=[1]): "bounded is no number",
    '{"step": 2, "rows": 3}': "rows are no list",
    '{"step": 2, "rows": [3]}': "a row is no object",
    '{"step": 2, "loss": "low"}': "loss is no number",
    '{"step": 2, "scalars": {"a": [1]}}': "a is no number",
    '{"step": 2, "scalars": 3}': "scalars are no object",
    "\xff": "codec can't decode",
    "[" * 100_000: "maximum recursion depth",
    f'{{"step": {10**30}}}': "step does not fit in 64 bits",
    f'{{"step": 2, "loss": {10**400}}}': "loss is too large",
    f'{{"step": 2, "scalars": {{"a": -{10**400}}}}}': "a is too large",
    line_of_a_row(lr=10**400): "lr is too large",
    line_of_a_row(numel=2**63): "numel is negative or does not fit in 64 bits",
    line_of_a_row(dead=-1): "dead is negative or does not fit in 64 bits",
    line_of_a_row(rate_hist=[2**63] * 64): "rate_hist has a count that is negative or does not",
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


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_in_place_of_a_folder_is_named_with_the_remedy(tmp_path, inside):
    folder = tmp_path / "file"
    folder.touch()
    folder = folder / "run" if inside else folder
    with pytest.raises(OSError, match=r"a run log cannot lie in .*; name a folder that") as raised:
        RunLog(folder)
    assert str(folder) in str(raised.value)


def test_an_optimizer_without_a_bound_is_refused_before_anything_is_written(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    log = RunLog(tmp_path)
    with pytest.raises(TypeError, match="the optimizer is SGD; train with AdaMod"):
        log.log(optimizer, 1.0)
    assert not log.path.exists()
