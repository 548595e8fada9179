"""PNG figures of a record: time against size, host time against tensors, share of bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adamod_fused.demo.style import FAINT, INK, STYLE

from .fits import SWEEPS
from .record import Record, Result
from .report import OURS, describe, memory_limit
from .style import GRID, LIMIT, End, label_ends, line, look, order

DPI = 140
WIDTH = 11.0  # inches, of each figure
DTYPE = "float32"
ROOFLINE = "roofline"
ADAM_BYTES, ADAMOD_BYTES = 28, 36  # fp32, per parameter and step, every stream once
LEAST_ELEMENTS = 1_000_000  # of a list whose bandwidth says something about memory

STEP_TIME = {"cpu": "", "cuda": " on the device"}
HOST_TIME = {
    "cpu": "host time: a step on tensors of 16 elements, where next to nothing else is left",
    "cuda": "host time: until step() returns, while the GPU is busy with something else",
}

Lines = dict[str, list[tuple[float, float]]]


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws the figures for which the record holds enough; returns their paths."""
    import matplotlib as mpl

    paths = []
    with mpl.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make(record)
            if figure is not None:
                paths.append(folder / f"bench-{record.device}-{name}.png")
                figure.savefig(paths[-1], dpi=DPI)
    return paths


def size_figure(record: Record) -> Any:
    """Time of a step against elements, with the roofline; None without two sizes."""
    lines = _lines(record, "elements", lambda result: result.step_ms.median / 1e3)
    if not lines:
        return None
    limit = memory_limit(record)
    note = ""
    if limit is not None:
        note = (
            f"grey: memory at {limit.gb_per_s:,.0f} GB/s, {limit.name}, for {ADAM_BYTES} (Adam) "
            f"to {ADAMOD_BYTES} (AdaMod) bytes per element and step"
        )
        note += "; a CPU's cache is faster" if record.device == "cpu" else ""
    figure, axes = _figure(record, 7.2, "Time of a step against size, one float32 tensor", note)
    _draw_lines(axes, lines, "elements", f"time of a step{STEP_TIME[record.device]}")
    if limit is not None:
        _draw_roofline(axes, _span(lines), limit.gb_per_s)
    return figure


def host_figure(record: Record) -> Any:
    """Host time of a step against tensors; None without two counts."""
    lines = _lines(record, "tensors", lambda r: r.host_us.median / 1e6 if r.host_us else None)
    if not lines:
        return None
    title = "Host time of a step against the number of tensors"
    figure, axes = _figure(record, 7.2, title, HOST_TIME[record.device])
    _draw_lines(axes, lines, "tensors", "host time of a step")
    return figure


def bandwidth_figure(record: Record) -> Any:
    """Bars of the share of the memory's speed, a panel for each large list; None without one."""
    names = [
        name
        for name in dict.fromkeys(result.list for result in record.results)
        if record.lists[name].elements >= LEAST_ELEMENTS
        and not name.startswith(tuple(SWEEPS.values()))
        and any(r.list == name and r.dtype == DTYPE for r in record.results)
    ]
    limit = memory_limit(record)
    if not names or limit is None:
        return None
    results = {(r.list, r.contestant): r for r in record.results if r.dtype == DTYPE}
    contestants = order(contestant for name, contestant in results if name in names)
    height = 2.2 + 0.3 * len(contestants)
    note = f"100%: {limit.gb_per_s:,.0f} GB/s, {limit.name}, bytes read and written"
    if record.device == "cpu" and record.copy_GB_per_s is not None:
        note += f"; a copy has {record.copy_GB_per_s.median:,.0f} GB/s (bench/roofline.py)"
    title = f"Share of memory bandwidth, {DTYPE}"
    figure, panels = _figure(record, height, title, note, panels=len(names))
    for axes, name in zip(panels, names, strict=True):
        shares = {
            contestant: results[name, contestant].GB_per_s / limit.gb_per_s
            for contestant in contestants
            if (name, contestant) in results
        }
        _draw_bars(axes, name, contestants, shares)
    panels[0].set_yticks(range(len(contestants)), contestants)
    for label in panels[0].get_yticklabels():
        if label.get_text().startswith(OURS):
            label.set_fontweight("bold")
            label.set_color(look(label.get_text()).color)
    return figure


FIGURES: dict[str, Callable[[Record], Any]] = {
    "size": size_figure,
    "host": host_figure,
    "bandwidth": bandwidth_figure,
}


def _figure(
    record: Record, height: float, title: str, note: str, panels: int = 0
) -> tuple[Any, Any]:
    """A figure and its axes, or its list of ``panels`` axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=16, fontweight="bold")
    footer = "\n".join(filter(None, (note, describe(record))))
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=10, color=FAINT)
    axes = figure.subplots(1, max(panels, 1), sharey=True, squeeze=False)[0]
    return figure, axes if panels else axes[0]


def _lines(record: Record, against: str, y: Callable[[Result], float | None]) -> Lines:
    """Points of each contestant in a sweep, in order; no lines where there is but one point."""
    lines: Lines = {}
    for result in record.results:
        value = y(result)
        if result.list.startswith(SWEEPS[against]) and result.dtype == DTYPE and value is not None:
            x = getattr(record.lists[result.list], against)
            lines.setdefault(result.contestant, []).append((x, value))
    several = len({x for points in lines.values() for x, _ in points}) > 1
    return {name: sorted(lines[name]) for name in order(lines)} if several else {}


def _span(lines: Lines) -> tuple[float, float]:
    xs = [x for points in lines.values() for x, _ in points]
    return min(xs), max(xs)


def _draw_lines(axes: Any, lines: Lines, x_label: str, y_label: str) -> None:
    from matplotlib.ticker import EngFormatter

    for rank, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), label=name, **line(name, rank))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(_span(lines)[0] / 1.5, _span(lines)[1] * 1.5)
    axes.set_ylim(*axes.get_ylim())  # no longer to change with what is drawn
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    label_ends(axes, [End(name, *points[-1]) for name, points in lines.items()], gap=0.042)


def _draw_roofline(axes: Any, span: tuple[float, float], gb_per_s: float) -> None:
    """Where memory's speed would put a step: a band from Adam's bytes up to AdaMod's."""
    low, high = ([x * size / gb_per_s / 1e9 for x in span] for size in (ADAM_BYTES, ADAMOD_BYTES))
    axes.fill_between(span, low, high, color=LIMIT, linewidth=0, zorder=1)
    axes.plot(span, high, color=FAINT, linewidth=1, zorder=2, label=ROOFLINE)
    y = max(1.5 * axes.get_ylim()[0], low[0])
    x = y / low[0] * span[0]
    axes.annotate(
        ROOFLINE, (x, y), (8, 0), textcoords="offset points", va="center", color="#6A6A6A"
    )


def _draw_bars(axes: Any, name: str, contestants: list[str], shares: dict[str, float]) -> None:
    from matplotlib.ticker import PercentFormatter

    rows = [contestants.index(contestant) for contestant in shares]
    colors = [look(contestant).color for contestant in shares]
    bars = axes.barh(rows, shares.values(), color=colors, height=0.7)
    axes.axvline(1, color=FAINT, linewidth=1, linestyle="dashed")
    words = [f"{share:.0%}" for share in shares.values()]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the dashes
    axes.bar_label(bars, words, padding=3, fontsize=10, bbox=white)
    axes.set_xlim(0, max(1.3, 1.25 * max(shares.values())))
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(len(contestants) - 0.4, -0.6)  # the first on top
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(name, fontsize=12, color=INK, pad=6)
