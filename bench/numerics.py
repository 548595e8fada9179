"""What few bits do to numbers; `python -m bench.numerics` records and draws it.

Slow averages over 40,000 steps, ours and those of other optimizers' storage against float64
(long_horizon.py), and final losses of training with each state format (format_training.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from adamod_fused.console import Console, PlainConsole, open_console
from adamod_fused.demo.style import ADAM, ADAMOD, FAINT, INK, STYLE
from adamod_fused.extras import installed

from . import machine
from .format_training import TASKS, final_losses, permutation_test
from .long_horizon import GRADIENTS, STATES, STORAGES, Drift, study
from .record import RESULTS, rounded, save_json
from .style import DASHED, DOTTED, GRID, LOOKS, Look

SCHEMA = 1
NUMEL = 1024  # for each beta and distribution; a multiple of every storage's block
STEPS = 20_000
POINTS = 20  # of a curve, for each half
SEEDS = 5
TRAINING_STEPS = {"Transformer": 300, "convolutional": 300}
DRAWN_BETA = 0.9999
DPI = 140
# Of the figure's axes, wide enough for each curve or to see it leave.
RANGES = {"exp_avg_sq": (1 / 4, 8.0), "exp_avg_lr": (1 / 2048, 16.0)}

STORAGE_LOOKS = {
    "AdaMod 8bit": Look(ADAMOD),
    "AdaMod 16bit": Look("#56B4E9"),
    "bfloat16, nearest": Look(ADAM),
    "bfloat16, stochastic": Look(ADAM, DOTTED),
    "bitsandbytes 8-bit": LOOKS["bitsandbytes Adam8bit"],
    "torchao 8-bit": LOOKS["torchao AdamW8bit"],
}


@dataclass(frozen=True)
class Training:
    """Of a task: final losses by state format, one a seed, and p of no difference to fp32."""

    steps: int
    final_losses: dict[str, list[float]]
    p: dict[str, float]


@dataclass(frozen=True)
class NumericsRecord(machine.Origin):
    """What a run found."""

    elements: int
    steps: int
    """With usual gradients; as many with smaller ones follow."""
    drifts: dict[str, list[Drift]]
    training: dict[str, Training]


def drifts(numel: int, steps: int) -> dict[str, list[Drift]]:
    """Of every storage that is installed."""
    storages = {
        name: make(numel)
        for name, (package, make) in STORAGES.items()
        if package is None or installed(package)
    }
    found: dict[str, list[Drift]] = {name: [] for name in storages}
    for name, drift in study(storages, numel, steps, max(1, steps // POINTS)):
        found[name].append(
            drift._replace(quantiles=tuple(rounded(ratio) for ratio in drift.quantiles))
        )
    return found


def training(name: str, seeds: int) -> Training:
    steps = TRAINING_STEPS[name]
    losses = final_losses(TASKS[name](), range(seeds), steps)
    p = {
        state_format: rounded(permutation_test(losses["fp32"], found))
        for state_format, found in losses.items()
        if state_format != "fp32"
    }
    return Training(steps, {k: [rounded(loss) for loss in v] for k, v in losses.items()}, p)


def ends(record: NumericsRecord, storage: str) -> list[Drift]:
    """After the usual gradients, and after the smaller ones."""
    steps = (record.steps, 2 * record.steps)
    return [drift for drift in record.drifts[storage] if drift.step in steps]


def show(console: Console, record: NumericsRecord) -> None:
    rows = []
    for name in record.drifts:
        for drift in ends(record, name):
            ratios = (f"{ratio:.3f}" for ratio in drift.quantiles)
            where = (f"{drift.beta:g}", drift.gradients, drift.state, f"{drift.step:,}")
            rows.append((name, *where, *ratios, f"{drift.zeros}"))
    columns = ("kept as", "beta", "gradients", "state", "steps", "5 %", "median", "95 %", "zeros")
    console.line("ratio to float64")
    console.table(columns, rows)
    rows = []
    for name, trained in record.training.items():
        for state_format, losses in trained.final_losses.items():
            p = trained.p.get(state_format)
            shown = (f"{loss:.3f}" for loss in losses)
            rows.append((name, state_format, *shown, "" if p is None else f"{p:.2f}"))
    console.line("final loss of each seed, and p of no difference to fp32")
    console.table(("task", "states", *(f"seed {n}" for n in range(len(rows[0]) - 3)), "p"), rows)


def draw(record: NumericsRecord, path: Path) -> None:
    """Median ratios against steps, a panel for each state and distribution; of ours the spread."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    titles = {"exp_avg_sq": "second moment v", "exp_avg_lr": "bound s"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 7.6), layout="constrained")
        figure.suptitle(
            f"States in few bits against float64, beta = {DRAWN_BETA:g}",
            x=0.01,
            ha="left",
            fontsize=16,
            fontweight="bold",
        )
        panels = figure.subplots(len(STATES), len(GRADIENTS), sharex=True, sharey="row")
        for row, state in zip(panels, STATES, strict=True):
            for axes, gradients in zip(row, GRADIENTS, strict=True):
                _draw_panel(axes, record, state, gradients)
                axes.set_title(f"{titles[state]}, {gradients}", fontsize=12)
                axes.set_yscale("log", base=2)
                axes.set_ylim(*RANGES[state])
                axes.yaxis.set_major_formatter(lambda value, _: str(Fraction(value)))
                axes.xaxis.set_major_formatter(EngFormatter())
                axes.grid(axis="y", color=GRID, linewidth=0.8)
            row[0].set_ylabel("ratio to float64")
        for axes in panels[-1]:
            axes.set_xlabel("step")
        note = (
            f"medians of {record.elements:,} elements, AdaMod's with their 5th to 95th percentile; "
            f"gradients are ten times smaller from step {record.steps:,} on"
        )
        figure.legend(
            *panels[0][0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(record.drifts),
            frameon=False,
            title=note,
            title_fontsize=10,
        )
        figure.savefig(path, dpi=DPI)


def _draw_panel(axes: Any, record: NumericsRecord, state: str, gradients: str) -> None:
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.axvline(record.steps, color=FAINT, linewidth=0.8, linestyle=DASHED)
    for rank, (name, found) in enumerate(record.drifts.items()):
        drifts = [
            d for d in found if (d.beta, d.state, d.gradients) == (DRAWN_BETA, state, gradients)
        ]
        # A ratio of 0 has no place on the axis.
        steps = [drift.step for drift in drifts]
        low, median, high = (
            [max(drift.quantiles[k], RANGES[state][0] / 2) for drift in drifts] for k in range(3)
        )
        look, ours = STORAGE_LOOKS[name], name.startswith("AdaMod")
        width = 3.0 if ours else 1.6
        axes.plot(
            steps,
            median,
            label=name,
            color=look.color,
            linestyle=look.dashes,
            linewidth=width,
            zorder=4 - rank / 100,
        )
        if ours:
            axes.fill_between(steps, low, high, color=look.color, alpha=0.18, linewidth=0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.numerics", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--commit", help="of these sources, where there is no repository")
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # tensors so small are faster without others
    packages = [package for package, _ in STORAGES.values() if package is not None]
    record = NumericsRecord(
        schema=SCHEMA,
        date=machine.date(),
        commit=given.commit or machine.commit(),
        machine=machine.machine(torch.device("cpu")),
        versions=machine.versions(packages),
        elements=NUMEL,
        steps=STEPS,
        drifts=drifts(NUMEL, STEPS),
        training={name: training(name, SEEDS) for name in TASKS},
    )
    # Where there is no terminal rich would fold wide tables.
    console = open_console() if sys.stdout.isatty() else PlainConsole()
    show(console, record)
    save_json(asdict(record), given.out / "numerics.json")
    draw(record, given.out / "numerics.png")
    console.line(f"record: {(given.out / 'numerics.json').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
