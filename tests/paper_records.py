"""A record of made-up numbers, in which every claim of the paper holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from paper_data import TINY

from bench.paper.plan import EXPERIMENTS, Run, runs
from bench.paper.rates import BINS
from bench.paper.record import SCHEMA, Record, facts_of, settings_of

STEPS = [1, 5, 10]
JITTER = {1: -1.0, 2: 0.0, 3: 1.0}  # of the seeds

MACHINE = {"cpu": "a processor", "cores": 2, "gpu": None}
DATA = {
    "fashion_mnist": {"name": "dataset-fashion-mnist", "version": "1"},
    "pairs": {
        "pairs": {"training": 4000, "validation": 200, "test": 300},
        "packages": [{"split": "training", "name": "alpha", "version": "2", "pairs": 4000}],
    },
    "used": {"transformer": {"training": 900, "validation": 80, "test": 40, "known": 3}},
}


def rates(median: float) -> dict[str, Any]:
    histogram = [0.0] * BINS
    histogram[BINS // 2] = 1.0
    return {"median": median, "p99": 100 * median, "max": 1e5, "histogram": histogram}


def loss_of(run: Run) -> tuple[float, float]:
    """Early and late."""
    contender = run.contender
    if contender.rule == "adamod":
        place = [0.0, 0.9, 0.99, 0.999, 0.9999].index(contender.beta3)
        return 5 + 0.2 * place, 3 - 0.2 * place
    return 5.0, {"adam": 2.4 if contender.warmup else 3.5, "radam": 2.6}[contender.rule]


def accuracy_of(run: Run) -> float:
    contender = run.contender
    if contender.rule == "adam":
        return {1e-3: 90.0, 1e-2: 80.0, 1e-1: 60.0}[contender.lr]
    return 94.0 if run.task == "densenet" else 91.0


def result(run: Run) -> dict[str, Any]:
    jitter = JITTER[run.seed]
    found: dict[str, Any] = {"diverged": False}
    if run.task == "transformer":
        early, late = (loss + 0.005 * jitter for loss in loss_of(run))
        found["final"] = {"validation_loss": late, "bleu": 30 - 5 * late}
        measured = [early, early, late]
        found["curve"] = {"step": STEPS, "training_loss": measured, "validation_loss": measured}
        if run.contender.rule in ("adam", "adamod"):
            found["rates"] = [
                {"step": step, "silent": 0.1, "eta": rates(10.0 / step**3), "bounded": rates(0.01)}
                for step in STEPS
            ]
    else:
        final = accuracy_of(run) + 0.02 * jitter
        found["final"] = {"accuracy": final}
        found["curve"] = {"step": STEPS, "training_loss": [1.0] * 3, "accuracy": [final] * 3}
    facts = {"key": run.key(TINY), **facts_of(run), "date": "2026-01-01", "seconds": 60.0}
    return facts | found | {"environment": 0}


def record(change: Callable[[dict[str, Any]], None] = lambda run: None) -> Record:
    """Of the scale "tiny", which must stand in SCALES; ``change`` may alter each run."""
    found = [copy.deepcopy(result(run)) for run in runs(EXPERIMENTS, TINY)]
    for run in found:
        change(run)
    versions = {"adamod_fused": "1", "torch": "2"}
    environment = {"commit": "abc", "machine": MACHINE, "versions": versions}
    return Record(
        {
            "schema": SCHEMA,
            "scale": "tiny",
            "settings": json.loads(json.dumps(settings_of(TINY))),
            "transformers": ["transformer"],
            "seeds": [1, 2, 3],
            "data": DATA,
            "environments": [environment],
            "runs": found,
        }
    )
