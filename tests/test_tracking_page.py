"""docs/tracking.md: its code runs, its table names every column, its figures are measured."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import torch

from adamod_fused import AdaMod
from adamod_fused.bound_stats import HISTOGRAM_EDGES
from adamod_fused.tracking import read
from bench import tracking

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tracking.md"


def test_the_code_writes_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", lambda: tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code, {})
    entries = read(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(1, 201))
    tracked = [entry for entry in entries if "rows" in entry]
    assert [entry["step"] for entry in tracked] == [1, 51, 101, 151]
    assert [row["name"] for row in tracked[0]["rows"]] == ["weight", "bias"]


def test_the_modules_it_imports_have_what_it_imports():
    found = re.findall(r"from (adamod_fused\.tracking\.\w+) import (\w+)", PAGE.read_text())
    assert len(found) == 4
    for name, what in found:
        path = Path(importlib.util.find_spec(name).origin)
        assert f"class {what}" in path.read_text()


def test_the_table_names_every_column():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = AdaMod([parameter], track_bound=True)
    parameter.grad = torch.ones(3)
    optimizer.step()
    (row,) = optimizer.bound_stats()
    columns = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(), re.MULTILINE)
    named = json.loads("[" + ", ".join(columns).replace("`", '"') + "]")
    assert sorted(named) == sorted(row)
    assert len(HISTOGRAM_EDGES) == 65
    assert (HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]) == (2.0**-40, 2.0**24)


def test_the_cost_is_that_of_the_record():
    record = tracking.load(ROOT / "bench" / "results" / "tracking-cpu.json")
    told = PAGE.read_text().partition("A step that is looked at reads")[2].partition("[record]")[0]
    told = " ".join(told.split())
    for name, list_ in (("gpt2-124m", "GPT-2"), ("single-50m", "50 million")):
        ratio = record.costs[name].seen_over_plain.median
        assert re.search(rf"{ratio:.1f} times[^,]*?{list_}", told), name
    assert f"with every {record.every}th" in told
    assert f"{tracking.dearest(record):.2f} times" in told
