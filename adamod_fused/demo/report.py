"""What the demo found: the table of the three runs, and the record in ``results.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..console import Console
from ..files import write_whole
from .compare import Difference
from .rates import Rates, bin_edges
from .settings import Settings
from .text import Text
from .train import Run


def print_findings(
    console: Console,
    settings: Settings,
    runs: list[Run],
    difference: Difference | None,
    rates: list[Rates],
) -> None:
    """One row per run; only the first is compared with the reference, which is the second."""
    compared = len(runs[1].losses)
    identical = (f"{'NO' if difference else 'yes'}, after {compared} steps", "-", "-")
    console.table(
        (
            "optimizer",
            "backend",
            "steps",
            "train loss",
            "val. loss",
            "optimizer step",
            "identical",
        ),
        [
            (
                run.contestant.optimizer,
                run.contestant.backend,
                f"{len(run.losses)}",
                *_losses(run, settings),
                f"{run.optimizer_milliseconds:.2f} ms",
                answer,
            )
            for run, answer in zip(runs, identical, strict=True)
        ],
    )
    console.line(
        f"loss: nats per byte, {runs[0].validation[0][1]:.2f} before the first step; train loss: "
        f"mean of the last {len(runs[0].last_losses)} steps; val. loss: on text that was not "
        "trained on; optimizer step: median time, the optimizers taking their steps in turn; "
        "identical: every bit of the parameters and states is that of the reference"
    )
    if difference:
        console.line(f"the backend and the reference differ, please report it: {difference}")
    if runs[0].contestant.backend == "reference":
        console.line(
            "both AdaMod runs are the reference: python -m adamod_fused doctor says which kernels "
            "work here"
        )
    first, last = rates[0], rates[-1]
    console.line(
        f"the bound lowered the rates of {first.share_bounded:.0%} of the elements in step "
        f"{first.step} and of {last.share_bounded:.0%} in step {last.step}"
    )
    if settings.lr > 1e-3:
        console.line(
            f"lr = {settings.lr:g} is high for Adam without warm-up: --lr 1e-3 shows the other side"
        )
    memory = 1 / (1 - settings.beta3)
    if memory > settings.steps:
        console.line(
            f"beta3 = {settings.beta3} looks back about {memory:,.0f} steps, more than these "
            f"{settings.steps}: the warm-up built into AdaMod was still on at the end"
        )


def _losses(run: Run, settings: Settings) -> tuple[str, str]:
    """Both losses at the end; none for the reference, which stops early."""
    if len(run.losses) < settings.steps:
        return "-", "-"
    return f"{run.train_loss:.4f}", f"{run.validation_loss:.4f}"


def write_record(
    path: Path,
    *,
    settings: Settings,
    versions: dict[str, str],
    text: Text,
    runs: list[Run],
    difference: Difference | None,
    rates: list[Rates],
) -> None:
    """Writes everything that the table and the figure show, and what it depends on, as JSON."""
    record = {
        "settings": {k: v for k, v in asdict(settings).items() if k != "out"},
        "versions": versions,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "text": {
            "characters": text.characters,
            "train_topics": list(text.train_topics),
            "validation_topics": list(text.validation_topics),
        },
        "identical": difference is None,
        "difference": asdict(difference) if difference else None,
        "runs": [_run(run) for run in runs],
        "rates": [asdict(rate) for rate in rates],
        "log10_rate_bin_edges": bin_edges(),
    }
    write_whole(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n", path)


def _run(run: Run) -> dict[str, Any]:
    return {
        "optimizer": run.contestant.optimizer,
        "backend": run.contestant.backend,
        "train_loss": run.train_loss,
        "validation_loss": run.validation_loss,
        "optimizer_step_ms": run.optimizer_milliseconds,
        "whole_step_ms": run.step_milliseconds,
        "losses": run.losses,
        "validation": run.validation,
    }


def _finite(value: Any) -> Any:
    """The value with None for inf and NaN, which JSON lacks: a run may diverge."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
