"""The figure: loss curves on the left, the distribution of the learning rates on the right."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from .rates import Rates, bin_edges
from .settings import Settings
from .style import ADAM, ADAMOD, FAINT, INK, STYLE
from .train import Run

DEMO_STYLE = STYLE | {
    "font.size": 13,
    "figure.constrained_layout.wspace": 0.06,
    "legend.frameon": False,
    "legend.fontsize": 12,
}

SMOOTHING = 50  # a point of the curve averages this part of the run to its left and right
LEAST_SHARE = 1e-4  # of the elements in a bin, below which the axis need not reach
RIDGE_HEIGHT = 0.85  # of the distance between two ridges


def draw(path: Path, settings: Settings, runs: list[Run], rates: list[Rates]) -> None:
    """Draws the PNG file; ``runs`` are AdaMod, its reference and Adam."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(DEMO_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.8), layout="constrained")
        _draw_losses(left, settings, runs)
        _draw_rates(right, rates)
        figure.savefig(path, dpi=140)
        plt.close(figure)


def _draw_losses(axes: Any, settings: Settings, runs: list[Run]) -> None:
    adamod, reference, adam = runs
    # Equal runs lie on each other: the reference is a thin dashed line within AdaMod's wide one.
    for run, style in (
        (adam, {"color": ADAM, "linewidth": 2}),
        (adamod, {"color": ADAMOD, "linewidth": 5, "alpha": 0.5}),
        (reference, {"color": INK, "linewidth": 1.3, "linestyle": (0, (4, 3))}),
    ):
        steps = range(1, len(run.losses) + 1)
        axes.plot(steps, _smooth(run.losses), label=run.contestant.label, **style)
    for run, color in ((adam, ADAM), (adamod, ADAMOD)):
        axes.plot(*zip(*run.validation, strict=True), clip_on=False, **_marker(color))
    axes.plot([], [], **_marker(INK), label="on validation text")

    axes.set_title(
        f"Validation loss after {settings.steps} steps:\n"
        f"AdaMod {adamod.validation_loss:.2f}, Adam {adam.validation_loss:.2f}"
    )
    axes.set_xlabel(f"step (lr = {settings.lr:g}, no warm-up)")
    axes.set_ylabel("loss (nats per byte)")
    axes.set_xlim(0, settings.steps * 1.02)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.legend()


def _marker(color: str) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": "o",
        "markersize": 7,
        "markerfacecolor": "white",
        "markeredgecolor": color,
        "markeredgewidth": 1.8,
        "zorder": 3,
    }


def _draw_rates(axes: Any, rates: list[Rates]) -> None:
    """One ridge per measured step, the first on top; its two histograms share one scale."""
    edges = bin_edges()
    centers = [10 ** ((low + high) / 2) for low, high in pairwise(edges)]
    for row, rate in enumerate(reversed(rates)):
        # Not 0, which it would be where the run has diverged and no rate is a number.
        tallest = max(*rate.adam.histogram, *rate.bounded.histogram, LEAST_SHARE)
        for distribution, color, label in (
            (rate.adam, ADAM, "Adam's rate $\\eta$"),
            (rate.bounded, ADAMOD, "AdaMod's rate $\\min(\\eta, s)$"),
        ):
            heights = [row + RIDGE_HEIGHT * share / tallest for share in distribution.histogram]
            axes.fill_between(
                centers,
                row,
                heights,
                color=color,
                alpha=0.35,
                linewidth=0,
                label=label if row == 0 else None,
            )
            axes.plot(centers, heights, color=color, linewidth=1.5)
        axes.axhline(row, color="white", linewidth=2.2)
        axes.axhline(row, color=FAINT, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(*_span(rates, centers))
    axes.set_ylim(0, len(rates) + 0.55)
    axes.set_yticks(range(len(rates)), [f"step {rate.step}" for rate in reversed(rates)])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(_rates_title(rates))
    axes.set_xlabel("learning rate of an element; height: share of the elements")
    axes.legend(loc="upper right", ncols=2)


def _rates_title(rates: list[Rates]) -> str:
    early = rates[min(1, len(rates) - 1)]
    adam, bounded = early.adam.percentile_99, early.bounded.percentile_99
    if not bounded < adam / 2:
        return "Learning rates of all elements,\nbefore and after AdaMod's bound"
    return (
        "AdaMod cuts the largest rates early: 99th\n"
        f"percentile {_short(bounded)} in step {early.step}, Adam's {_short(adam)}"
    )


def _short(number: float) -> str:
    """Two significant digits without an exponent: 300 where ``.2g`` says 3e+02."""
    return f"{float(f'{number:.2g}'):,g}"


def _span(rates: list[Rates], centers: list[float]) -> tuple[float, float]:
    """The learning rates that occur, with a little room."""
    seen = [
        center
        for rate in rates
        for histogram in (rate.adam.histogram, rate.bounded.histogram)
        for center, share in zip(centers, histogram, strict=True)
        if share > LEAST_SHARE
    ]
    return min(seen) / 2, max(seen) * 2


def _smooth(values: list[float]) -> list[float]:
    """Moving average over a centered window, which unlike an exponential one does not lag."""
    widest = len(values) // SMOOTHING
    smooth = []
    for index in range(len(values)):
        # Narrower at the start, where the loss falls fast, so that the curve begins at its value.
        reach = min(widest, index)
        smooth.append(fmean(values[index - reach : index + reach + 1]))
    return smooth
