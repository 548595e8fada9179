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
from bench.paper.verdicts import NOT_REPRODUCED, REPRODUCED, UNCLEAR, difference

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "choosing.md").read_text()


@pytest.fixture(scope="module")
def record() -> Record:
    return Record.load(ROOT / "bench" / "results" / "paper-cpu.json")


@pytest.fixture(scope="module")
def measured(record: Record) -> set[str]:
    losses = [ADAM, WARMED, *(adamod(LR, beta3) for beta3 in (0.9, 0.99, 0.999, 0.9999))]
    losses.append(adamod(LR, variant="released"))
    accuracies = [
        *((task, c) for task in ("resnet", "densenet") for c in (SGDM, ADAM, adamod(LR))),
        *(("resnet", c) for c in (Contender("adam", 0.01), Contender("adam", 0.1), adamod(0.1))),
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


def test_describes_the_runs_of_the_record(record: Record) -> None:
    transformer, resnet = (record.scale.tasks[name] for name in ("transformer", "resnet"))
    assert (transformer.steps, transformer.warmup) == (2000, 200)
    assert 880 < resnet.steps < 960  # "about 900"


def _losses(record: Record, contender: Contender) -> list[float]:
    return record.finals(Group("transformer", contender), "validation_loss")


def _accuracies(record: Record, contender: Contender) -> list[float]:
    return record.finals(Group("resnet", contender), "accuracy")


def test_comparisons_are_what_the_seeds_can_tell(record: Record) -> None:
    warmed = _losses(record, WARMED)
    level = difference(_losses(record, adamod(LR, 0.99)), warmed)
    assert -0.15 < level.low < 0 < level.high < 0.15
    behind = difference(_losses(record, adamod(LR)), warmed)
    assert f"{behind.mean:.2f}" == "0.13"
    assert behind.low > 0
    sgd = _accuracies(record, SGDM)
    for contender in (Contender("adam", 0.01), adamod(0.1)):
        assert difference(sgd, _accuracies(record, contender)).low < 0
    for contender in (ADAM, adamod(LR)):
        assert difference(sgd, _accuracies(record, contender)).low > 0


def test_the_readme_says_what_was_measured(record: Record) -> None:
    told = (ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    for contender in (ADAM, WARMED, *(adamod(LR, beta3) for beta3 in (0.99, 0.999, 0.9999))):
        assert f"{statistics.fmean(_losses(record, contender)):.2f}" in told, contender
    findings = {name: CLAIMS[name].find(record) for name in EXPERIMENTS}
    assert {findings[name].verdict for name in EXPERIMENTS if name != "variants"} == {
        NOT_REPRODUCED
    }
    verdicts = {name: [part.verdict for part in found.parts] for name, found in findings.items()}
    assert verdicts["rates"] == [NOT_REPRODUCED, REPRODUCED]
    assert verdicts["warmup"] == [REPRODUCED, REPRODUCED, NOT_REPRODUCED, UNCLEAR]
    assert verdicts["lr"] == [NOT_REPRODUCED, NOT_REPRODUCED]
    assert 1.9 < findings["rates"].parts[1].interval.mean < 2.4  # "a hundredth"
