"""The statistics of the bound in Weights & Biases."""

from __future__ import annotations

from typing import Any

from .rows import LOG2_EDGES, NewRows, Row, count_of, histograms, scalars, unwrapped

STEP = "adamod_step"


class BoundStatsWriter:
    """Logs each tracked step once, over ``adamod_step``: every number, and both histograms.

    The histograms are over log2 of the rate, since the axis is linear.

    Args:
        run: what ``wandb.init()`` returned.
        per_tensor: a key for every tensor instead of every param group. Default: False.
    """

    def __init__(self, run: Any, per_tensor: bool = False) -> None:
        self._run = run
        self._new = NewRows(per_tensor)
        # An axis of their own: W&B's own step counts the calls of log(), ours among them.
        run.define_metric(STEP)
        run.define_metric("adamod_*", step_metric=STEP)

    def log(self, optimizer: Any, step: int | None = None) -> None:
        """To be called after ``optimizer.step()``; logs nothing if no new step was tracked.

        ``step`` is what ``adamod_step`` says. Default: None, the optimizer's own count.
        """
        optimizer = unwrapped(optimizer)
        with self._new.of(optimizer) as rows:
            if rows:
                self._write(rows, count_of(optimizer) if step is None else step)

    def _write(self, rows: list[Row], step: int) -> None:
        import wandb

        entry: dict[str, Any] = {STEP: step, **scalars(rows)}
        for tag, counts in histograms(rows).items():
            np_histogram: Any = counts, LOG2_EDGES  # lists do as well as numpy's arrays
            entry[tag] = wandb.Histogram(np_histogram=np_histogram)
        self._run.log(entry)
