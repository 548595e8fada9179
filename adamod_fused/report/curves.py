"""Curves over the steps: the whole model's in front of faint ones of single tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from plotly import graph_objects as go

from .series import Run, Tracked, averaged
from .text import plotly_text, rounded

MOST_POINTS = 2000  # of a loss
MOST_TENSORS = 40
FAR = 30  # times from the least norm to the largest: a power of ten or two lie in between
FAINT = "rgba(128, 128, 128, 0.7)"  # to be seen on light and on dark

Numbers = list[float | None]


def losses(run: Run) -> tuple[Any, int]:
    """The figure, and how many values a point is the mean of."""
    figure = go.Figure(layout={"showlegend": len(run.losses) > 1})
    longest = 1
    for name, points in run.losses.items():
        steps, values, window = averaged(points, MOST_POINTS)
        longest = max(longest, window)
        figure.add_scatter(
            x=steps,
            y=[rounded(value) for value in values],
            name=plotly_text(name),
            mode=_mode(steps),
            hovertemplate="step %{x}: %{y}<extra>%{fullData.name}</extra>",
        )
    return figure.update_layout(xaxis_title="step", yaxis_title="loss"), longest


def shares(tracked: list[Tracked], column: str) -> Any:
    """Curves of a share of elements: ``bounded`` or ``dead``."""
    whole = [t.bounded if column == "bounded" else t.dead / max(1, t.total) for t in tracked]
    figure = _curves(tracked, column, whole, lambda share: rounded(100 * share), " %")
    figure.update_layout(yaxis={"title": "share of elements (%)", "rangemode": "tozero"})
    if column == "bounded":
        figure.update_layout(yaxis_range=[-2, 102])
    elif not any(whole):
        figure.update_layout(yaxis_range=[-0.02, 1])
    return figure


def norms(tracked: list[Tracked], column: str, unit: str) -> Any:
    """Curves of ``grad_norm`` or ``update_norm``; zero has no place on a logarithmic axis."""
    whole = [getattr(t, column) for t in tracked]
    figure = _curves(tracked, column, whole, lambda norm: rounded(norm) if norm else None, "")
    drawn = [norm for trace in figure.data for norm in trace.y if norm]
    is_far = bool(drawn) and max(drawn) / min(drawn) > FAR
    return figure.update_layout(
        yaxis={
            "title": unit,
            "type": "log",
            "exponentformat": "power",
            "dtick": 1 if is_far else "D2",  # ticks at powers of ten, else at 1, 2 and 5
        }
    )


def _curves(
    tracked: list[Tracked],
    column: str,
    whole: Iterable[float],
    shown: Callable[[float], float | None],
    unit: str,
) -> Any:
    steps = [t.step for t in tracked]
    hover = f"step %{{x}}: %{{y}}{unit}<extra>%{{fullData.name}}</extra>"
    common = {"x": steps, "mode": _mode(steps)}
    figure = go.Figure(layout={"xaxis_title": "step", "showlegend": True})
    figure.add_scatter(
        y=_drawable(whole, shown),
        name="whole model",
        line_width=3,
        zorder=1,
        hovertemplate=hover,
        **common,
    )
    names = largest(tracked[-1])
    # One entry in the legend stands for all: a hundred names would leave no room for the figure.
    label = (
        "each tensor" if len(names) == len(tracked[-1].names) else f"{len(names)} largest tensors"
    )
    for place, name in enumerate(names):
        numbers = (_of(t, column, name) for t in tracked)
        figure.add_scatter(
            y=_drawable(numbers, shown),
            name=label,
            legendgroup="tensors",
            showlegend=place == 0,
            line={"width": 1, "color": FAINT},
            marker_color=FAINT,
            # Not within the template, which would take "%{x}" in a name for one of its fields.
            meta=plotly_text(name),
            hovertemplate=hover.replace("%{fullData.name}", "%{meta}"),
            **common,
        )
    return figure


def largest(tracked: Tracked) -> list[str]:
    """Names of the tensors with the most elements, in the order of the model."""
    numel = dict(zip(tracked.names, tracked.numel, strict=True))
    chosen = set(sorted(numel, key=lambda name: -numel[name])[:MOST_TENSORS])
    return [name for name in tracked.names if name in chosen]


def _of(tracked: Tracked, column: str, name: str) -> float:
    if name not in tracked.places:
        return math.nan
    return tracked.by_tensor[column][tracked.places[name]]


def _drawable(numbers: Iterable[float], shown: Callable[[float], float | None]) -> Numbers:
    return [shown(number) if math.isfinite(number) else None for number in numbers]


def _mode(steps: list[int]) -> str:
    return "lines" if len(steps) > 1 else "markers"
