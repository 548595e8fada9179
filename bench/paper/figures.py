"""Draws a record's figures, one for each experiment that it has in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from adamod_fused.demo.style import ADAM, ADAMOD, FAINT, STYLE

from .contenders import Contender, adamod
from .plan import ADAM as BARE
from .plan import LR, LRS, SGDM, Group, groups
from .rates import edges
from .record import Record

PURPLE, GREEN, SKY, AMBER = "#6A4C93", "#009E73", "#56B4E9", "#E69F00"
DASHED, DOTTED = (0, (5, 2)), (0, (1.2, 1.6))
SHADE = 0.18  # opacity between the least and the most of the seeds
PANELS = 4  # steps of which learning rates are shown

LOOKS: dict[str, dict[str, Any]] = {
    "SGDM": {"color": FAINT},
    "Adam": {"color": ADAM},
    "Adam + warm-up": {"color": ADAM, "linestyle": DASHED},
    "RAdam": {"color": PURPLE},
    "AdaMod beta3=0": {"color": AMBER},
    "AdaMod beta3=0.9": {"color": GREEN},
    "AdaMod beta3=0.99": {"color": SKY},
    "AdaMod beta3=0.999": {"color": ADAMOD},
    "AdaMod beta3=0.999 released": {"color": ADAMOD, "linestyle": DASHED},
    "AdaMod beta3=0.9999": {"color": ADAMOD, "linestyle": DOTTED},
}


def name_of(record: Record, experiment: str) -> str:
    return f"paper-{record.data['scale']}-{experiment}.png"


def draw(record: Record, folder: Path) -> Iterator[Path]:
    """Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    for experiment in record.experiments():
        with mpl.rc_context(STYLE):
            figure = DRAWINGS[experiment](plt, record)
            path = folder / name_of(record, experiment)
            # Without versions and dates, so that the same record gives the same file.
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
        yield path


def _curves(axes: Any, record: Record, shown: Sequence[Group], measure: str) -> None:
    """Of each group the mean over seeds, and from the least to the most of them."""
    for group in shown:
        every = record.runs(group)
        runs = [run["curve"] for run in every if not run["diverged"]]
        label = group.contender.name + _diverged(len(every) - len(runs), len(every))
        if not runs:
            axes.plot([], [], label=label, **_look(group.contender))
            continue
        values = list(zip(*(run[measure] for run in runs), strict=True))
        steps, look = runs[0]["step"], _look(group.contender)
        axes.plot(
            steps,
            [sum(seeds) / len(seeds) for seeds in values],
            label=label,
            linewidth=2.2,
            **look,
        )
        low, high = ([pick(seeds) for seeds in values] for pick in (min, max))
        axes.fill_between(steps, low, high, color=look["color"], alpha=SHADE, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats a token")
    axes.legend(frameon=False, fontsize=11)


def _diverged(count: int, seeds: int) -> str:
    """Said beside a name: a mean of the seeds that are left is not that of all."""
    if count == 0:
        return ""
    return " (diverged)" if count == seeds else f" ({count} of {seeds} diverged)"


def _look(contender: Contender) -> dict[str, Any]:
    return LOOKS[contender.name]


def _rates(plt: Any, record: Record) -> Any:
    task = record.scale.transformers[0]
    adam, ours = (
        {found["step"]: found for found in record.runs(Group(task, c))[0]["rates"]}
        for c in (BARE, adamod(LR))
    )
    chosen = _spread(sorted(adam.keys() & ours.keys()), PANELS)
    figure, panels = plt.subplots(
        1, PANELS, figsize=(14, 3.8), sharex=True, sharey=True, layout="constrained"
    )
    for axes in panels[len(chosen) :]:  # a run that diverged has rates of its first steps alone
        axes.remove()
    places = [(low + high) / 2 for low, high in zip(edges(), edges()[1:], strict=False)]
    for axes, step in zip(panels, chosen, strict=False):
        shown = (
            (adam[step]["eta"], ADAM, "Adam: eta"),
            (ours[step]["bounded"], ADAMOD, "AdaMod: min(eta, s)"),
        )
        for found, color, label in shown:
            axes.fill_between(
                places, [100 * share for share in found["histogram"]], step="mid",
                color=color, alpha=0.45, linewidth=0, label=label,
            )  # fmt: skip
        axes.set_title(f"step {step}", fontsize=13)
        axes.set_xlabel("log10 of the learning rate")
    if chosen:
        panels[0].set_ylabel("% of the elements")
        panels[0].legend(frameon=False, fontsize=10, loc="upper left")
    return figure


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, the first and the last among them, evenly by place."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]


def _warmup(plt: Any, record: Record) -> Any:
    tasks = record.scale.transformers
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(8.5 * len(tasks), 5.2), squeeze=False, layout="constrained"
    )
    every = groups("warmup", record.scale)
    for axes, task in zip(panels[0], tasks, strict=True):
        _curves(axes, record, [g for g in every if g.task == task], "validation_loss")
        axes.set_title(task)
    return figure


def _one_task(plt: Any, record: Record, experiment: str) -> Any:
    figure, axes = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    _curves(axes, record, groups(experiment, record.scale), "validation_loss")
    return figure


def _points(axes: Any, places: Sequence[float], values: list[list[float]], who: Contender) -> None:
    """Every seed a dot, and a line through the means."""
    look, name = _look(who), who.name
    means = [sum(seeds) / len(seeds) for seeds in values]
    axes.plot(places, means, label=name, linewidth=2.2, **look)
    for place, seeds in zip(places, values, strict=True):
        axes.plot([place] * len(seeds), seeds, "o", markersize=5, color=look["color"], alpha=0.6)


def _lr(plt: Any, record: Record) -> Any:
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for make in (lambda lr: Contender("adam", lr), adamod):
        values = [record.finals(Group("resnet", make(lr)), "accuracy") for lr in LRS]
        _points(axes, LRS, values, make(LRS[0]))
    axes.set_xscale("log")
    axes.set_xlabel("initial learning rate")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False)
    return figure


def _depth(plt: Any, record: Record) -> Any:
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    tasks = ("resnet", "densenet")
    for contender in (SGDM, BARE, adamod(LR)):
        values = [record.finals(Group(task, contender), "accuracy") for task in tasks]
        _points(axes, range(len(tasks)), values, contender)
    axes.set_xticks(range(len(tasks)), ("ResNet", "DenseNet"))
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False)
    return figure


DRAWINGS: dict[str, Callable[[Any, Record], Any]] = {
    "rates": _rates,
    "warmup": _warmup,
    "lr": _lr,
    "depth": _depth,
    "beta3": lambda plt, record: _one_task(plt, record, "beta3"),
    "variants": lambda plt, record: _one_task(plt, record, "variants"),
}
