"""``python -m adamod_fused report``: the command, the page as text, and the numbers it shows."""

from __future__ import annotations

import html
import json
import math
import os
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from bound_rows import FakeAdaMod, row

from adamod_fused import AdaMod, __main__, extras
from adamod_fused.report import series, summary
from adamod_fused.tracking import RunLog
from adamod_fused.tracking.rows import HISTOGRAMS, NUMBERS
from adamod_fused.tracking.run_log import FILE

MARKUP = "</script><b>bold & loud</b>"
NAMES = ("embedding.weight", MARKUP, "head.bias")

needs_plotly = pytest.mark.skipif(
    not extras.installed("plotly"), reason=f"no plotly here: {extras.INSTALL_REPORT}"
)


def write_run(folder: Path, steps: int = 7, names: tuple[str, ...] = NAMES, **how) -> FakeAdaMod:
    optimizer, log = FakeAdaMod(names, **how), RunLog(folder)
    for step in range(1, steps + 1):
        optimizer.step()
        log.log(optimizer, 3 / step, val_loss=4 / step, **{f"loss {MARKUP}": 5.0, "lr": 1.0})
    return optimizer


def report(*arguments: object, code: str | None = None) -> subprocess.CompletedProcess:
    start = ["-m", "adamod_fused"]
    if code is not None:
        start = ["-c", f"{code}\nfrom adamod_fused.__main__ import main\nraise SystemExit(main())"]
    return subprocess.run(
        [sys.executable, *start, "report", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_plotly
def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    write_run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["adamod_fused", "report", str(tmp_path)])
    assert __main__.main() == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    elsewhere = tmp_path / "other.html"
    monkeypatch.setattr(
        sys, "argv", ["adamod_fused", "report", str(tmp_path), "-o", str(elsewhere)]
    )
    assert __main__.main() == 0
    assert elsewhere.read_text() == (tmp_path / "report.html").read_text()


BAD_RUNS = {
    "missing": (None, "there is no folder .*; name the folder of a run"),
    "no log": ({}, r"there is no bound_stats.jsonl in .*RunLog\("),
    "empty": ({FILE: ""}, "has no tracked step yet; make the optimizer with AdaMod"),
    "no rows": ({FILE: '{"step": 1, "loss": 2.0}\n'}, "has no tracked step yet"),
    "bad line": ({FILE: '{"step": 1}\n{"st\n'}, "bound_stats.jsonl, line 2 is no entry"),
}


@needs_plotly
@pytest.mark.parametrize(("files", "message"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_bad_runs_say_what_to_do(tmp_path, monkeypatch, capsys, files, message):
    folder = tmp_path / "run"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["adamod_fused", "report", str(folder)])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert re.search(message, capsys.readouterr().err)
    assert not (folder / "report.html").exists()


def test_without_plotly_it_says_what_to_install(tmp_path):
    write_run(tmp_path)
    process = report(tmp_path, code="import sys; sys.modules['plotly'] = None")
    assert process.returncode == 2
    assert "pip install 'adamod_fused[report]'" in process.stderr


class Elements(HTMLParser):
    """Every element with its attributes, and the text by the element around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.found[-1][0] if self.found else "", data))


@needs_plotly
def test_the_page_loads_nothing_and_names_do_no_harm(tmp_path):
    from adamod_fused.report.page import page

    write_run(tmp_path)
    text = page(series.load(tmp_path), f"run {MARKUP}")
    elements = Elements(text)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3
    assert not {"link", "iframe", "img", "object", "embed", "base", "b"} & set(tags)
    for _, attributes in elements.found:
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys()
    styles = "".join(data for tag, data in elements.texts if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles
    (policy,) = (a["content"] for _, a in elements.found if "http-equiv" in a)
    sources = dict(part.split(maxsplit=1) for part in policy.split(";"))
    assert sources.pop("default-src") == "'none'"
    assert set(sources.values()) <= {"'none'", "'unsafe-inline'", "data: blob:"}
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1)
    assert "<" not in data
    figures = json.loads(data)
    plots = [attributes for _, attributes in elements.found if attributes.get("class") == "plot"]
    assert len(figures["figures"]) == len(plots) == 8
    shown = json.dumps(figures)
    assert "<b>" not in shown
    assert "&lt;/script&gt;&lt;b&gt;bold &amp; loud&lt;/b&gt;" in shown


@needs_plotly
def test_the_figures_hold_the_numbers(tmp_path):
    from adamod_fused.report.panels import panels

    optimizer = write_run(tmp_path, steps=5, every=2)
    run = series.load(tmp_path)
    figures = {panel.key: panel.figure for panel in panels(run)}
    last, rows = run.tracked[-1], optimizer.bound_stats()
    bins = []
    for key, name in (("rates", "rate"), ("bounded-rates", "bounded_rate")):
        shares = getattr(last, f"{name}_shares")
        heat, line = figures[key].data
        assert heat.x == line.x == (1, 3, 5)
        drawn = {y: 10 ** z[-1] for y, z in zip(heat.y, heat.z, strict=True) if z[-1] is not None}
        expected = {k - 39.5: share for k, share in enumerate(shares) if share}
        assert drawn == pytest.approx(expected, rel=1e-2)
        assert 2 ** line.y[-1] == pytest.approx(getattr(last, f"{name}_median"), rel=1e-2)
        bins.append((heat.y, heat.zmin, heat.zmax, figures[key].layout.yaxis.range))
    assert bins[0] == bins[1]

    (heat,) = figures["tensors"].data
    assert list(heat.text) == ["embedding.weight", html.escape(MARKUP), "head.bias"]
    bounded = [100 * row["bounded"] for row in rows]
    assert [z[-1] for z in heat.z] == pytest.approx(bounded, rel=1e-3)
    for key, column, whole, scale in (
        ("bounded", "bounded", last.bounded, 100),
        ("grad-norm", "grad_norm", last.grad_norm, 1),
        ("update-norm", "update_norm", last.update_norm, 1),
    ):
        drawn = [trace.y[-1] for trace in figures[key].data]
        expected = [scale * number for number in (whole, *(row[column] for row in rows))]
        assert drawn == pytest.approx(expected, rel=1e-3), key
    drawn = [trace.y[-1] for trace in figures["dead"].data]
    shares = [row["dead"] / row["numel"] for row in rows]
    assert drawn == pytest.approx([100 * x for x in (last.dead / last.total, *shares)], rel=1e-3)
    assert figures["loss"].data[0].y == pytest.approx([3 / step for step in range(1, 6)], rel=1e-3)


def test_sums_are_those_of_the_rows(tmp_path):
    optimizer = write_run(tmp_path, steps=5, every=2)
    run = series.load(tmp_path)
    assert [tracked.step for tracked in run.tracked] == [1, 3, 5]
    rows, last = optimizer.bound_stats(), run.tracked[-1]
    numel = sum(r["numel"] for r in rows)
    assert last.total == numel
    assert last.bounded == pytest.approx(sum(r["bounded"] * r["numel"] for r in rows) / numel)
    assert last.rate_max == max(r["rate_max"] for r in rows)
    assert last.bounded_rate_max == max(r["bounded_rate_max"] for r in rows)
    assert last.dead == sum(r["dead"] for r in rows) == 5
    assert last.grad_norm == pytest.approx(math.sqrt(sum(r["grad_norm"] ** 2 for r in rows)))
    assert last.update_norm == pytest.approx(math.sqrt(sum(r["update_norm"] ** 2 for r in rows)))
    for name, shares in (
        ("rate_hist", last.rate_shares),
        ("bounded_rate_hist", last.bounded_rate_shares),
    ):
        columns = zip(*(r[name] for r in rows), strict=True)
        assert shares == pytest.approx([sum(c) / numel for c in columns])
    assert run.losses["loss"] == [(step, 3 / step) for step in range(1, 6)]
    assert run.losses.keys() == {"loss", "val_loss", f"loss {MARKUP}"}


def test_numbers_that_are_missing_do_not_spread(tmp_path):
    good = row("good", 100, 1)
    bad = row("bad", 300, 1) | {"rate_max": math.nan, "rate_hist": [0] * 64, "grad_norm": math.nan}
    none = good | {"name": "none", "numel": 0, "bounded": math.nan, "dead": 0}
    optimizer = FakeAdaMod()
    optimizer.bound_stats = lambda by, after: [good, bad, none]
    RunLog(tmp_path).log(optimizer)
    (tracked,) = series.load(tmp_path).tracked
    assert tracked.rate_max == good["rate_max"]
    assert tracked.bounded == pytest.approx(0.25 * good["bounded"] + 0.75 * bad["bounded"])
    assert sum(tracked.rate_shares) == pytest.approx(1)
    assert math.isnan(tracked.grad_norm)


def test_median_lies_where_half_of_the_elements_are():
    shares = [0.0] * 64
    shares[40], shares[41] = 0.25, 0.75  # from 2^0 and from 2^1
    assert series.median(shares, 3.9) == pytest.approx(2 ** (1 + 1 / 3))
    assert series.median(shares, 2.1) == 2.1
    assert math.isnan(series.median([0.0] * 64, math.nan))


def test_long_runs_are_thinned_and_keep_their_ends():
    assert series.thinned([1, 2, 3], 3) == [1, 2, 3]
    some = series.thinned(list(range(1000)), 7)
    assert len(some) == 7
    assert (some[0], some[-1]) == (0, 999)
    points = [(step, float(step)) for step in range(1, 8)]
    assert series.averaged(points, 7) == ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], 1)
    assert series.averaged(points, 3) == ([3, 6, 7], [2, 5, 7], 3)
    assert series.averaged([(1, 1.0), (2, math.nan)], 1) == ([2], [None], 2)


def test_tensors_of_one_name_keep_their_series(tmp_path):
    """Whichever of them, and of those before them, had a gradient in a step."""
    params = [torch.nn.Parameter(torch.ones(size)) for size in (2, 3, 5)]
    groups = [{"params": [(name, p)]} for name, p in zip(("x", "w", "w"), params, strict=True)]
    optimizer, log = AdaMod(groups, track_bound=1), RunLog(tmp_path)
    for without in (None, 0, 1):
        for number, param in enumerate(params):
            param.grad = None if number == without else torch.ones_like(param)
        optimizer.step()
        log.log(optimizer)
    series_of = {"x": 2, "w (1.0)": 3, "w (2.0)": 5}
    for tracked, without in zip(series.load(tmp_path).tracked, (None, "x", "w (1.0)"), strict=True):
        wanted = {name: numel for name, numel in series_of.items() if name != without}
        assert dict(zip(tracked.names, tracked.numel, strict=True)) == wanted


def row_of_nan(name: str, numel: int) -> dict:
    """As bound_stats has it of a tensor whose elements are all NaN."""
    rates = ("bounded", *(n for n in NUMBERS if "rate" in n))
    empty = dict.fromkeys(HISTOGRAMS, [0] * 64) | dict.fromkeys(rates, math.nan)
    return row(name, numel, 1) | empty | {"nonfinite": numel}


def test_a_tensor_of_nan_does_not_hide_the_others(tmp_path):
    good, half = row("good", 100, 1), row("half", 60, 1) | {"nonfinite": 30}
    optimizer, log = FakeAdaMod(), RunLog(tmp_path)
    for step, rows in enumerate(
        ([row_of_nan("bad", 300)], [good, row_of_nan("bad", 300), half | {"bounded": 0.5}]), 1
    ):
        optimizer.step()
        optimizer.bound_stats = lambda by, after, rows=rows: rows
        log.log(optimizer, step=step)
    run = series.load(tmp_path)
    assert math.isnan(run.tracked[0].bounded)
    assert run.tracked[1].bounded == pytest.approx((100 * good["bounded"] + 30 * 0.5) / 130)
    held, medians, rates, *_ = summary.sentences(run)
    assert "no number of the elements in step 1" in held
    assert "no number of Adam's in step 1" in medians
    assert "would have been no number with Adam" in rates
    run.tracked[1].bounded = 0.001
    assert any("hardly ever acted" in sentence for sentence in summary.sentences(run))


def test_without_a_learning_rate_the_medians_are_zero(tmp_path):
    """As in the first step of a schedule that rises from 0."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer, log = AdaMod([param], lr=0.0, track_bound=1), RunLog(tmp_path)
    for lr in (0.0, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.ones(3)
        optimizer.step()
        log.log(optimizer)
    run = series.load(tmp_path)
    table = {name: values for name, *values in summary.table(run)}
    assert table["Adam's rate η, median"] == ["0", "0.088"]  # the middle of its bin
    assert table["rate used min(η, s), median"][0] == "0"
    words = "The median learning rate used was 0, as Adam's is, in step 1, "
    assert summary.sentences(run)[1].startswith(words)


@needs_plotly
@pytest.mark.parametrize("place", ["missing/page.html", "."])
def test_a_page_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch, capsys, place):
    write_run(tmp_path)
    out = tmp_path / place
    monkeypatch.setattr(sys, "argv", ["adamod_fused", "report", str(tmp_path), "-o", str(out)])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    wanted = rf"cannot write {re.escape(str(out))} \(.*\); name a place for the page with -o FILE"
    assert re.search(wanted, capsys.readouterr().err)


def run_report(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["adamod_fused", "report", str(folder)])
    assert __main__.main() == 0


@needs_plotly
def test_the_page_takes_the_place_of_a_link(tmp_path, monkeypatch):
    write_run(tmp_path / "run")
    target, link = tmp_path / "target", tmp_path / "run" / "report.html"
    target.write_text("keep me")
    link.symlink_to(target)
    run_report(monkeypatch, tmp_path / "run")
    assert target.read_text() == "keep me"
    assert not link.is_symlink()
    assert link.read_text().startswith("<!DOCTYPE html>")


@needs_plotly
def test_a_full_disk_leaves_the_old_page(tmp_path, monkeypatch, capsys):
    write_run(tmp_path)
    (tmp_path / "report.html").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(SystemExit, match="2"):
            run_report(monkeypatch, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "report.html"}
    assert (tmp_path / "report.html").read_text() == "old"


@needs_plotly
def test_a_folder_whose_name_is_no_text_has_a_page_too(tmp_path, monkeypatch, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    write_run(folder)
    run_report(monkeypatch, folder)
    assert "run-\ufffd" in (folder / "report.html").read_text()
    assert "run-\ufffd" in capsys.readouterr().out


@needs_plotly
def test_a_device_is_not_replaced_by_a_page(tmp_path, monkeypatch, capsys):
    write_run(tmp_path)
    os.mkfifo(tmp_path / "report.html")
    with pytest.raises(SystemExit, match="2"):
        run_report(monkeypatch, tmp_path)
    assert "not a regular file" in capsys.readouterr().err
    assert (tmp_path / "report.html").is_fifo()


def test_the_words_are_those_of_the_numbers(tmp_path):
    write_run(tmp_path, steps=400, every=399)
    run = series.load(tmp_path)
    held, medians, rates, dead = summary.sentences(run)
    assert held.startswith("The bound held back 100\N{NO-BREAK SPACE}% of the elements in step 1, ")
    assert held.endswith("in step 400.")
    assert medians.startswith("The median learning rate used was 1.03\N{NO-BREAK SPACE}% of Adam's")
    assert "would have been 1e5 with Adam, and was 1,000 with AdaMod" in rates
    assert "1e5 with Adam (step 1), 9.8e4 with AdaMod (step 400)" in rates
    assert dead.startswith("5 of 420 elements (1.19\N{NO-BREAK SPACE}%) have had no gradient yet")
    table = {name: values for name, *values in summary.table(run)}
    assert table["dead elements (no gradient yet)"] == ["5", "5"]
    assert table["loss, first and last"] == ["3", "0.0075"]


def test_a_bound_that_never_acts_and_numbers_that_are_none_are_named(tmp_path):
    rows = [row("a", 100, 3) | {"bounded": 0.001, "nonfinite": 7}]
    optimizer = FakeAdaMod()
    optimizer.bound_stats = lambda by, after: rows
    RunLog(tmp_path).log(optimizer, step=3)
    held, _, _, never, nonfinite = summary.sentences(series.load(tmp_path))
    assert held.endswith("the only one that was tracked so far.")
    assert "hardly ever acted, on 0.1\N{NO-BREAK SPACE}% of the elements at most" in never
    assert "inf or NaN in 1 of 1 tracked steps, first in step 3" in nonfinite


def test_numbers_are_written_as_people_do():
    assert [summary.rate(r) for r in (1.234e-5, 0.0312, 9.96, 123.4, 1e4, 1e5, math.nan)] == [
        "1.2e-5", "0.031", "10", "120", "1e4", "1e5", "no number",
    ]  # fmt: skip
    shares = [
        summary.percent(s).replace("\N{NO-BREAK SPACE}", " ") for s in (0, 1e-4, 0.5, 0.9999, 1)
    ]
    assert shares == ["0 %", "less than 0.1 %", "50 %", "more than 99.9 %", "100 %"]
