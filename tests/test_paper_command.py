"""``python -m bench.paper``: data, runs that go on where they were, a record, figures, a page."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from paper_data import SPLITS, TINY, fill_images, fill_packages
from paper_records import record as made_up
from paper_records import result

from adamod_fused.console import PlainConsole
from bench.paper import __main__, fashion, figures, page, pairs, plan, run
from bench.paper.record import RESULTS, Record, path_of
from bench.paper.settings import SCALES

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted(RESULTS.glob("paper-*.json"))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "tiny", TINY)


class Inline:
    """A pool whose work is done at once, in this process."""

    def __init__(self, **options: Any) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future[float]:
        future: Future[float] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **options: Any) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of data alone."""
    monkeypatch.setattr(pairs, "SPLITS", SPLITS)
    monkeypatch.setattr(fashion, "INSTALLED", tmp_path / "fashion")
    fill_images(tmp_path / "fashion")
    fill_packages(tmp_path / "cache" / "data")
    return tmp_path / "cache"


def command(cache: Path, *arguments: str) -> int:
    given = ["--scale", "tiny", "--cache", str(cache), "--out", str(cache / "out")]
    return __main__.main([*arguments, *given])


def test_everything(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ProcessPoolExecutor", Inline)
    assert command(cache, "run", "--only", "variants") == 0
    first = Record.load(path_of("tiny", cache / "out"))
    assert first.experiments() == ["variants"]

    started = []
    perform = run.perform
    monkeypatch.setattr(
        run, "perform", lambda *given: (started.append(given[0]), perform(*given))[1]
    )
    assert command(cache) == 0
    full = Record.load(path_of("tiny", cache / "out"))
    every = plan.runs(plan.EXPERIMENTS, TINY)
    assert len(full.data["runs"]) == len(every)
    assert len(started) == len(every) - len(first.data["runs"])  # what was there was kept
    assert full.experiments() == [*plan.EXPERIMENTS]
    packages = full.data["data"]["pairs"]["packages"]
    assert packages[0] == {
        "name": "alpha", "version": "1:2-3", "sha256": "00",
        "split": "training", "messages": 20, "pairs": 20,
    }  # fmt: skip
    assert (cache / "out" / "paper-tiny.md").read_text() == page.page(full)
    for experiment in plan.EXPERIMENTS:
        assert (cache / "out" / f"paper-tiny-{experiment}.png").stat().st_size > 5_000
    assert str(ROOT) not in path_of("tiny", cache / "out").read_text()
    assert "REPRODUCED" in capsys.readouterr().out or "UNCLEAR" in capsys.readouterr().out


def test_processes_of_their_own(cache: Path) -> None:
    """The real pool; what a spawned process needs comes by argument or from the cache."""
    run.prepare(cache, TINY, lambda text: None)
    kept = run.Kept.of("tiny", TINY, cache)
    two = plan.runs(["variants"], TINY)[:2]
    run.perform_all(two, kept, cache, PlainConsole())
    found = kept.finished(two)
    assert [one["contender"]["variant"] for one in found] == ["paper", "released"]
    assert len(list(kept.folder.iterdir())) == 2
    assert {one["environment"]["machine"]["gpu"] for one in found} == {None}


def test_a_failing_run_is_no_silence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ProcessPoolExecutor", Inline)

    def fail(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "perform", fail)
    with pytest.raises(ZeroDivisionError):
        command(cache, "run", "--only", "variants")


def finish(one: plan.Run, kept: run.Kept, root: Path) -> float:
    """In place of ``run.perform``, in no time."""
    kept.save(one, result(one) | {"environment": {}})
    return 0.25


def interrupted_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def stop(*given: Any) -> float:
        started.append(given)
        if len(started) > count:
            raise KeyboardInterrupt
        return finish(*given)

    monkeypatch.setattr(run, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(run, "perform", stop)


@pytest.mark.parametrize("finished", [0, 1])
def test_a_record_of_more_runs_stays(
    cache: Path, finished: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = path_of("tiny", cache / "out")
    path.parent.mkdir()
    before = made_up()
    before.save(path)
    interrupted_after(finished, monkeypatch)
    assert command(cache, "run", "--only", "variants") == 130
    assert Record.load(path) == before
    told = f"stays: it holds {len(before.data['runs'])} runs, and {finished} are finished here"
    assert told in capsys.readouterr().out


def test_an_interrupted_run_leaves_what_is_finished(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of("tiny", cache / "out")
    path.parent.mkdir()
    path.write_text("{")  # an unreadable record holds no runs
    interrupted_after(1, monkeypatch)
    assert command(cache, "run", "--only", "variants") == 130
    first = Record.load(path)
    assert len(first.data["runs"]) == 1
    interrupted_after(0, monkeypatch)  # as many runs as the record: it is replaced
    first.data["seeds"] = []
    first.save(path)
    assert command(cache, "run", "--only", "variants") == 130
    assert Record.load(path).data["seeds"] == [1, 2, 3]


def test_no_record_is_without_runs(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_after(0, monkeypatch)
    assert command(cache, "run") == 130
    assert not path_of("tiny", cache / "out").exists()
    out = capsys.readouterr().out
    assert "stopping: what still runs is finished first" in out
    assert "record: none, as no run is finished" in out


def test_no_report_is_of_a_record_without_runs(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = made_up()
    empty.data["runs"] = []
    (cache / "out").mkdir()
    empty.save(path_of("tiny", cache / "out"))
    with pytest.raises(SystemExit, match="2"):
        command(cache, "report")
    assert "paper-tiny.json: the record holds no runs" in capsys.readouterr().err


def performed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks of the runs that a command performs."""
    tasks = []
    with monkeypatch.context() as patched:
        patched.setattr(run, "ProcessPoolExecutor", Inline)
        patched.setattr(
            run, "perform", lambda *given: (tasks.append(given[0].task), finish(*given))[1]
        )
        assert command(cache, "run", "--only", "variants", "--only", "depth") == 0
    return tasks


def test_runs_of_other_data_are_run_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = performed(cache, monkeypatch)
    assert sorted(set(first)) == ["densenet", "resnet", "transformer"]
    path = path_of("tiny", cache / "out")
    assert all("data" not in one for one in Record.load(path).data["runs"])
    assert performed(cache, monkeypatch) == []
    assert "run again" not in capsys.readouterr().out

    with (cache / "data" / "pairs" / "test.tsv").open("a") as file:
        file.write("Open it\tÖffne es\n")
    assert performed(cache, monkeypatch) == ["transformer"] * 6
    assert "of other data, and run again: 6" in capsys.readouterr().out

    shutil.rmtree(fashion.INSTALLED)
    fill_images(fashion.INSTALLED, training=70)
    assert set(performed(cache, monkeypatch)) == {"resnet", "densenet"}

    for kept in (cache / "runs-tiny").iterdir():  # as they were before they told of their data
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"data": None}))
    assert sorted(performed(cache, monkeypatch)) == sorted(first)
    assert performed(cache, monkeypatch) == []


def test_every_run_is_a_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(performed(cache, monkeypatch)) == 24
    out = capsys.readouterr().out
    lines = re.findall(r"^runs  (\d+)/24  \w+, .+, seed \d: 0\.2 s$", out, re.M)
    assert lines == [str(done) for done in range(1, 25)]


@pytest.mark.parametrize("first", [(), ("run",)])
def test_a_scale_of_a_gpu_needs_one(
    first: tuple[str, ...],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(SCALES, "tiny", dataclasses.replace(TINY, device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "prepare", None)
    with pytest.raises(SystemExit, match="2"):
        command(cache, *first)
    assert "--scale tiny needs CUDA" in capsys.readouterr().err


def test_out_is_made_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "out").write_text("no folder")
    monkeypatch.setattr(run, "prepare", None)
    with pytest.raises(SystemExit, match="2"):
        command(cache, "run")
    assert "File exists" in capsys.readouterr().err


def test_a_full_disk_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first error is told, though no record can be saved then, either."""
    started = []

    def fill(*given: Any) -> float:
        started.append(given)
        if len(started) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "first")
        return finish(*given)

    def save(found: Record, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "second")

    monkeypatch.setattr(run, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(run, "perform", fill)
    monkeypatch.setattr(Record, "save", save)
    with pytest.raises(SystemExit, match="2"):
        command(cache, "run")
    told = capsys.readouterr()
    assert "No space left on device: 'first'" in told.err
    assert "record: not saved: [Errno 28] No space left on device: 'second'" in told.out


def test_a_corrupt_run_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    performed(cache, monkeypatch)
    corrupt = next((cache / "runs-tiny").iterdir())
    corrupt.write_text("{")
    with pytest.raises(SystemExit, match="2"):
        command(cache, "run")
    assert f"{corrupt}: not JSON; remove the file" in capsys.readouterr().err


def test_errors_are_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(cache, "report")
    assert "paper-tiny.json" in capsys.readouterr().err
    (cache / "out").mkdir()
    path_of("tiny", cache / "out").write_text(json.dumps({"schema": 0}))
    with pytest.raises(SystemExit):
        command(cache, "report")
    assert "schema must be 1, got 0" in capsys.readouterr().err
    other = {"schema": 1, "scale": "tiny", "settings": {}}
    path_of("tiny", cache / "out").write_text(json.dumps(other))
    with pytest.raises(SystemExit):
        command(cache, "report")
    assert "other settings than bench/paper/settings.py" in capsys.readouterr().err


def test_the_page_says_what_the_record_says() -> None:
    text = page.page(made_up())
    assert text.count("**reproduced**") == 6
    assert "not reproduced**" not in text
    assert "| SGD | Adam | AdaMod |\n" in text
    assert "| ResNet-34 | 78.95 | 73.51 | 74.72 |" in text
    headings = [line.lower().replace(" ", "-") for line in re.findall(r"^## (.*)$", text, re.M)]
    links = re.findall(r"\]\(#([\w-]+)\)", text)
    assert len(links) == 6
    assert set(links) < set(headings)


def test_a_record_may_be_of_some_experiments() -> None:
    found = made_up()
    found.data["runs"] = [one for one in found.data["runs"] if one["task"] == "transformer"]
    text = page.page(found)
    assert "Not in this record: The initial learning rate, Depth and density." in text


def test_diverged_runs_are_drawn(tmp_path: Path) -> None:
    def diverge(one: dict[str, Any]) -> None:
        if one["task"] == "transformer" and one["contender"]["rule"] == "radam":
            one["diverged"] = True
            one["curve"] = {"step": [], "training_loss": [], "validation_loss": []}

    assert len(list(figures.draw(made_up(diverge), tmp_path))) == 6


def labels(experiment: str, record: Record) -> list[str]:
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure = figures.DRAWINGS[experiment](plt, record)
    found = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    plt.close(figure)
    return found


def test_figures_tell_of_seeds_that_diverged() -> None:
    def diverge(one: dict[str, Any]) -> None:
        one["diverged"] = one["contender"]["beta3"] == 0.9 and one["seed"] == 2
        one["diverged"] |= one["contender"]["beta3"] == 0.99

    assert labels("beta3", made_up(diverge))[:3] == [
        "AdaMod beta3=0",
        "AdaMod beta3=0.9 (1 of 3 diverged)",
        "AdaMod beta3=0.99 (diverged)",
    ]


@pytest.mark.parametrize("steps", [2, 0])
def test_rates_are_drawn_of_steps_that_both_have(steps: int, tmp_path: Path) -> None:
    def diverge(one: dict[str, Any]) -> None:
        if one["contender"]["rule"] == "adamod" and "rates" in one:
            one["rates"] = one["rates"][:steps]

    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure = figures.DRAWINGS["rates"](plt, made_up(diverge))
    titles = [axes.get_title() for axes in figure.axes]
    plt.close(figure)
    assert titles == ["step 1", "step 5"][:steps]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_page_is_that_of_the_record(path: Path) -> None:
    found = Record.load(path)
    assert found.experiments() == [*plan.EXPERIMENTS]
    text = (page.DOCS / page.name_of_page(found.data["scale"])).read_text()
    assert text == page.page(found)
    for figure in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (page.DOCS / figure).exists()


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_record_is_of_the_settings_as_they_stand(path: Path) -> None:
    found = Record.load(path)
    wanted = {one.key(found.scale) for one in plan.runs(plan.EXPERIMENTS, found.scale)}
    assert {one["key"] for one in found.data["runs"]} == wanted
