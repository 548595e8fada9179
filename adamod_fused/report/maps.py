"""Heat maps over the steps: of learning rates, and of tensors."""

from __future__ import annotations

import math
from typing import Any

from plotly import graph_objects as go

from ..tracking.rows import LOG2_EDGES
from .series import Tracked
from .summary import rate as as_rate
from .text import plotly_text, rounded, shortened

LEAST_EXPONENT = -5  # of 10: the share of elements in a bin where the colours begin
MOST_LABELS = 45  # names beside a map of tensors
ROW_HEIGHT, LEAST_HEIGHT, MOST_HEIGHT = 18, 320, 980  # pixels


def occupied(tracked: list[Tracked]) -> tuple[int, int]:
    """The first and the last bin that hold an element, of either distribution, in any step."""
    bins = [
        place
        for t in tracked
        for shares in (t.rate_shares, t.bounded_rate_shares)
        for place, share in enumerate(shares)
        if share
    ]
    return min(bins, default=0), max(bins, default=len(LOG2_EDGES) - 2)


def rates(tracked: list[Tracked], bins: tuple[int, int], name: str) -> Any:
    """Shares of all elements by step and rate, ``rate`` or ``bounded_rate``, and the median."""
    first, last = bins
    distributions = [getattr(t, f"{name}_shares") for t in tracked]
    steps = [t.step for t in tracked]
    rows = range(first, last + 1)
    figure = go.Figure()
    figure.add_heatmap(
        x=steps,
        # On a linear axis of log2: plotly places the cells of a logarithmic one badly.
        y=[LOG2_EDGES[row] + 0.5 for row in rows],
        z=[[_logarithm(shares[row]) for shares in distributions] for row in rows],
        customdata=[[rounded(100 * shares[row]) for shares in distributions] for row in rows],
        text=[[_bin(row)] * len(steps) for row in rows],
        hovertemplate="step %{x}: %{customdata} % of the elements<br>rate %{text}<extra></extra>",
        hoverongaps=False,
        zmin=LEAST_EXPONENT,
        zmax=0,
        colorbar={
            "title": {"text": "share of elements (%)", "side": "right"},
            "tickvals": list(range(LEAST_EXPONENT, 1)),
            "ticktext": [f"{10.0 ** (power + 2):g}" for power in range(LEAST_EXPONENT, 1)],
        },
    )
    medians = [getattr(t, f"{name}_median") for t in tracked]
    figure.add_scatter(
        x=steps,
        y=[rounded(math.log2(rate)) if rate > 0 else None for rate in medians],
        text=[as_rate(rate) for rate in medians],
        name="median",
        mode="lines" if len(steps) > 1 else "markers",
        hovertemplate="step %{x}: median rate %{text}<extra></extra>",
    )
    low, high = LOG2_EDGES[first] - 0.5, LOG2_EDGES[last + 1] + 0.5
    powers = [p for p in range(-12, 8) if low <= p * math.log2(10) <= high]
    every = max(1, math.ceil(len(powers) / 10))
    powers = powers[::every]
    return figure.update_layout(
        xaxis={"title": "step", "showgrid": False},
        yaxis={
            "title": "learning rate of an element",
            "range": [low, high],
            "tickvals": [p * math.log2(10) for p in powers],
            "ticktext": [f"10<sup>{p}</sup>" for p in powers],
        },
        showlegend=True,
    )


def _bin(row: int) -> str:
    low, high = (as_rate(2.0**exponent) for exponent in LOG2_EDGES[row : row + 2])
    if row == 0:
        return f"below {high}"
    return f"from {low} up" if row == len(LOG2_EDGES) - 2 else f"{low} to {high}"


def _logarithm(share: float) -> float | None:
    return None if share == 0 else rounded(max(LEAST_EXPONENT, math.log10(share)))


def tensors(tracked: list[Tracked]) -> Any:
    """Share of bounded elements by step and tensor."""
    names = list(dict.fromkeys(name for t in tracked for name in t.names))
    every = math.ceil(len(names) / MOST_LABELS)
    rows = [str(place) for place in range(len(names))]
    figure = go.Figure()
    figure.add_heatmap(
        x=[t.step for t in tracked],
        # Not the names: plotly looks the categories of an axis up in an object of JavaScript, which
        # has a "__proto__" and a "constructor" before any is put there.
        y=rows,
        text=[plotly_text(name) for name in names],  # page.js gives each cell that of its row
        z=[[_percent(t, name) for t in tracked] for name in names],
        zmin=0,
        zmax=100,
        hovertemplate="step %{x}: %{z} % of the elements<br>%{text}<extra></extra>",
        hoverongaps=False,
        colorbar={"title": {"text": "share of elements (%)", "side": "right"}},
    )
    return figure.update_layout(
        height=min(MOST_HEIGHT, max(LEAST_HEIGHT, 110 + ROW_HEIGHT * len(names))),
        xaxis={"title": "step", "showgrid": False},
        yaxis={
            "title": "tensor",
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "tickvals": rows[::every],
            "ticktext": [plotly_text(shortened(name)) for name in names[::every]],
        },
    )


def _percent(tracked: Tracked, name: str) -> float | None:
    place = tracked.places.get(name)
    share = math.nan if place is None else tracked.by_tensor["bounded"][place]
    return rounded(100 * share) if math.isfinite(share) else None
