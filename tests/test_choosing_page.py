"""docs/choosing.md: every number it says was measured is one of the record's."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from bench.paper.claims import CLAIMS, spread
from bench.paper.contenders import Contender, adamod
from bench.paper.plan import ADAM, EXPERIMENTS, LR, SGDM, WARMED, Group
from bench.paper.record import Record
from bench.paper.verdicts import NOT_REPRODUCED, REPRODUCED, UNCLEAR

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "choosing.md").read_text()


@pytest.fixture(scope="module")
def measured() -> set[str]:
    record = Record.load(ROOT / "bench" / "results" / "paper-cpu.json")
    losses = [ADAM, WARMED, *(adamod(LR, beta3) for beta3 in (0.9, 0.99, 0.999, 0.9999))]
    losses.append(adamod(LR, variant="released"))
    accuracies = [
        *((task, c) for task in ("resnet", "densenet") for c in (SGDM, ADAM, adamod(LR))),
        *(("resnet", c) for c in (Contender("adam", 0.1), adamod(0.1))),
    ]
    return {
        *(spread(record.finals(Group("transformer", c), "validation_loss"), 3) for c in losses),
        *(spread(record.finals(Group(*which), "accuracy"), 2) for which in accuracies),
    }


def test_says_what_was_measured_and_nothing_else(measured: set[str]) -> None:
    said = set(re.findall(r"\d+\.\d+ ± \d+\.\d+", PAGE))
    assert said == measured


def test_quotes_the_authors_as_the_generated_page_does() -> None:
    paper = (ROOT / "docs" / "paper.md").read_text()
    for percent in ("78.95", "79.64", "74.72", "76.84"):
        assert percent in PAGE
        assert percent in paper


def test_describes_the_runs_of_the_record() -> None:
    record = Record.load(ROOT / "bench" / "results" / "paper-cpu.json")
    transformer, resnet = (record.scale.tasks[name] for name in ("transformer", "resnet"))
    assert (transformer.steps, transformer.warmup) == (2000, 200)
    assert 880 < resnet.steps < 960  # "about 900"


def test_the_readme_says_what_was_measured() -> None:
    record = Record.load(ROOT / "bench" / "results" / "paper-cpu.json")
    told = (ROOT / "README.md").read_text().partition("## Does it work?")[2].partition("\n## ")[0]
    for contender in (ADAM, WARMED, *(adamod(LR, beta3) for beta3 in (0.99, 0.999, 0.9999))):
        losses = record.finals(Group("transformer", contender), "validation_loss")
        assert f"{statistics.fmean(losses):.2f}" in told, contender
    verdicts = [CLAIMS[name].find(record).verdict for name in EXPERIMENTS if name != "variants"]
    assert verdicts == [REPRODUCED, UNCLEAR, *[NOT_REPRODUCED] * 3]
