"""When a claim counts as reproduced: the intervals, the rules, and what they say of records."""

from __future__ import annotations

import math
from typing import Any

import pytest
from paper_data import TINY
from paper_records import record
from scipy import stats

from bench.paper.claims import CLAIMS, early_losses, largest_rates
from bench.paper.plan import ADAM, Group
from bench.paper.settings import SCALES
from bench.paper.verdicts import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNCLEAR,
    Interval,
    at_least,
    difference,
    equal,
    mean_of,
    more,
    overall,
)

A, B = [3.1, 2.9, 3.3, 3.0], [2.0, 2.6, 2.2, 2.1]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "tiny", TINY)


def test_intervals_are_those_of_scipy() -> None:
    found = difference(A, B)
    wanted = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.mean == pytest.approx((sum(A) - sum(B)) / 4)
    found = mean_of(A)
    wanted = stats.ttest_1samp(A, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_samples_without_spread() -> None:
    assert difference([2.0, 2.0], [1.5, 1.5]) == Interval(0.5, 0.5, 0.5)
    assert mean_of([1.0, 1.0]) == Interval(1.0, 1.0, 1.0)


def test_what_the_seeds_share_is_no_spread() -> None:
    seeds = [0.0, 5.0, -3.0]
    found = difference([seed + 1 for seed in seeds], seeds)
    assert found == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (more, 0.5, 2.5, REPRODUCED),
        (more, 0.1, 1.1, UNCLEAR),  # above 0, but its mean is too little to count
        (more, -0.1, 5.0, UNCLEAR),
        (more, 0.1, 0.9, NOT_REPRODUCED),
        (more, -3.0, -2.0, NOT_REPRODUCED),
        (at_least, -0.9, 0.5, REPRODUCED),
        (at_least, -1.1, 3.0, UNCLEAR),
        (at_least, -1.2, -0.1, UNCLEAR),
        (at_least, -2.0, -0.1, NOT_REPRODUCED),
        (equal, -0.9, 0.9, REPRODUCED),
        (equal, 0.1, 0.9, REPRODUCED),
        (equal, -0.5, 1.5, UNCLEAR),
        (equal, 0.1, 1.5, UNCLEAR),
        (equal, 0.5, 2.0, NOT_REPRODUCED),
        (equal, -2.0, -0.5, NOT_REPRODUCED),
    ],
)
def test_rules(rule: Any, low: float, high: float, verdict: str) -> None:
    assert rule("", "", Interval((low + high) / 2, low, high), 1.0).verdict == verdict


def test_a_claim_is_as_good_as_its_worst_part() -> None:
    good, bad = (more("", "", Interval(mean, mean, mean), 1.0) for mean in (2.0, 0.0))
    open_ = more("", "", Interval(1.0, -1.0, 3.0), 1.0)
    assert overall([good, good]) == REPRODUCED
    assert overall([good, open_]) == UNCLEAR
    assert overall([good, open_, bad]) == NOT_REPRODUCED


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_that_hold(name: str) -> None:
    finding = CLAIMS[name].find(record())
    assert [part.text for part in finding.parts if part.verdict != REPRODUCED] == []
    assert finding.verdict == REPRODUCED
    assert all(len(row) == len(finding.columns) for row in finding.rows)


def is_ours(run: dict[str, Any]) -> bool:
    return run["contender"]["rule"] == "adamod"


def no_bound(run: dict[str, Any]) -> None:
    for snapshot in run.get("rates", ()):
        snapshot["bounded"] = snapshot["eta"]


def worse_with_us(run: dict[str, Any]) -> None:
    if is_ours(run) and "bleu" in run["final"]:
        run["final"] = {"validation_loss": 4.5, "bleu": 1.0 + run["seed"]}


def only_loss_is_worse(run: dict[str, Any]) -> None:
    if is_ours(run) and "bleu" in run["final"]:
        run["final"]["validation_loss"] = 3.0 + 0.001 * run["seed"]  # less than Adam's, bare


def only_bleu_is_worse(run: dict[str, Any]) -> None:
    if is_ours(run) and "bleu" in run["final"]:
        run["final"]["bleu"] -= 9


def sensitive_to_lr(run: dict[str, Any]) -> None:
    if is_ours(run) and run["contender"]["lr"] == 0.1:
        run["final"]["accuracy"] = 80.0 + run["seed"]


def no_gain_with_depth(run: dict[str, Any]) -> None:
    if is_ours(run) and run["task"] == "densenet":
        run["final"]["accuracy"] = 91.0 + 0.01 * run["seed"]


def late_is_not_better(run: dict[str, Any]) -> None:
    if run["contender"]["beta3"] == 0.9999:
        run["final"]["validation_loss"] += 1


def not_slower_at_first(run: dict[str, Any]) -> None:
    if run["contender"]["beta3"] == 0.999:
        run["curve"]["validation_loss"] = [3.0] * 3


def forms_differ(run: dict[str, Any]) -> None:
    if run["contender"]["variant"] == "released":
        run["final"]["validation_loss"] += 0.5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rates", no_bound),
        ("warmup", worse_with_us),
        ("warmup", only_loss_is_worse),
        ("warmup", only_bleu_is_worse),
        ("lr", sensitive_to_lr),
        ("depth", no_gain_with_depth),
        ("beta3", late_is_not_better),
        ("beta3", not_slower_at_first),
        ("variants", forms_differ),
    ],
)
def test_claims_that_do_not_hold(name: str, change: Any) -> None:
    assert CLAIMS[name].find(record(change)).verdict == NOT_REPRODUCED


def noisy(run: dict[str, Any]) -> None:
    """Seed by seed, and another noise for each side of a comparison."""
    scale = 1 + is_ours(run) + (run["contender"]["variant"] == "released")
    for measure in run["final"]:
        run["final"][measure] += 40 * (run["seed"] - 2) * scale


@pytest.mark.parametrize("name", ["warmup", "depth", "variants"])
def test_noise_is_no_verdict(name: str) -> None:
    assert CLAIMS[name].find(record(noisy)).verdict == UNCLEAR


def diverged(run: dict[str, Any]) -> None:
    """In the first step: no curve, no rates."""
    if run["contender"]["rule"] in ("adam", "adamod") and run["task"] == "transformer":
        run |= {"diverged": True, "rates": []}
        run["curve"] = {"step": [], "training_loss": [], "validation_loss": []}


def test_runs_that_diverged_count_as_ones_that_learnt_nothing() -> None:
    found = record(diverged)
    group = Group("transformer", ADAM)
    assert early_losses(found, group) == [pytest.approx(math.log(300))] * 3
    assert largest_rates(found, ADAM, "eta", range(1, 5)) == [pytest.approx(5)] * 3  # lr / eps
    for name in CLAIMS:
        CLAIMS[name].find(found)


def test_rates_are_compared_without_the_schedule() -> None:
    found = record()
    at_five, at_ten = (
        largest_rates(found, ADAM, "eta", range(step, step + 1))[0] for step in (5, 10)
    )
    # Of 10 / step^3, and of a schedule that fell by the root of two in between.
    assert at_five - at_ten == pytest.approx(math.log10(8 / 2**0.5))
