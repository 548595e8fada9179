"""The statistics of the bound in Weights & Biases."""

from __future__ import annotations

from typing import Any

from .rows import LOG2_EDGES, NewRows, histograms, scalars, step_of, unwrapped

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

    def log(self, optimizer: Any) -> None:
        """To be called after ``optimizer.step()``; logs nothing if no new step was tracked."""
        import wandb

        rows = self._new.of(unwrapped(optimizer))
        if rows:
            entry: dict[str, Any] = {STEP: step_of(rows), **scalars(rows)}
            for tag, counts in histograms(rows).items():
                np_histogram: Any = counts, LOG2_EDGES  # lists do as well as numpy's arrays
                entry[tag] = wandb.Histogram(np_histogram=np_histogram)
            self._run.log(entry)
