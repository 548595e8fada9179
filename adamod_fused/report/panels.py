"""What the page shows, in its order: each figure with its heading and how to read it."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import curves, maps
from .series import Run, thinned

MOST_STEPS = 300  # columns of a heat map, points of a curve: about what a screen can tell apart


class Panel(NamedTuple):
    """A figure of plotly's and the words around it, in plain text."""

    key: str
    title: str
    caption: str
    figure: Any
    is_wide: bool = False


def panels(run: Run) -> list[Panel]:
    """All panels of a run."""
    tracked = thinned(run.tracked, MOST_STEPS)
    octaves = maps.occupied(tracked)
    loss = []
    if run.losses:
        figure, window = curves.losses(run)
        means = f" A point is the mean of {window:,} values." if window > 1 else ""
        loss = [Panel("loss", "Loss", f"As the run logged it.{means}", figure)]
    return [
        *loss,
        Panel(
            "bounded",
            "Elements held back by the bound",
            "The step of an element held back used s, since s < η. Near 100 % at first: that is "
            "the built-in warm-up.",
            curves.shares(tracked, "bounded"),
            is_wide=not loss,
        ),
        Panel(
            "rates",
            "Learning rates Adam would have used, η",
            "A column is a step; its colours say which share of the elements has which rate.",
            maps.rates(tracked, octaves, "rate"),
        ),
        Panel(
            "bounded-rates",
            "Learning rates AdaMod used, min(η, s)",
            "On the same scales. What is missing here at the top, the bound took away.",
            maps.rates(tracked, octaves, "bounded_rate"),
        ),
        Panel(
            "tensors",
            "Elements held back, by tensor",
            "A row is a tensor, the first one on top; hover or tap for its name.",
            maps.tensors(tracked),
            is_wide=True,
        ),
        Panel(
            "grad-norm",
            "Norm of the gradient",
            "L2 norm of the gradient as the step used it, on a logarithmic axis.",
            curves.norms(tracked, "grad_norm", "norm (units of the gradient)"),
        ),
        Panel(
            "update-norm",
            "Norm of the update",
            "L2 norm of what the step added to the weights, without weight decay, on a logarithmic "
            "axis.",
            curves.norms(tracked, "update_norm", "norm (units of the weights)"),
        ),
        Panel(
            "dead",
            "Dead elements",
            "Every gradient so far was zero: units that never fire, rows of an embedding that "
            "were never seen.",
            curves.shares(tracked, "dead"),
            is_wide=True,
        ),
    ]
