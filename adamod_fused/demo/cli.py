"""The demo's order of work: check everything, train, compare, draw, report."""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from .. import AdaMod, backends, extras
from ..console import Console, open_console
from ..doctor import versions
from . import plot, rates, report, text
from .compare import Difference, difference
from .settings import Settings, add_arguments, check_device
from .train import Contestant, Training, deterministic

DESCRIPTION = (
    "Train a small Transformer on Python's own help texts, from the same start, on the same "
    "batches, without warm-up: with AdaMod on the fastest backend and with torch.optim.Adam. "
    "AdaMod's PyTorch reference repeats the first 100 steps and must reach the same bits. The runs "
    "take their steps in turn. Print losses and optimizer times, draw demo.png and write "
    "results.json. The exit code is 1 if a bit differs."
)

RATES_AT = (1, 10, 100)  # steps, besides the last
REFERENCE_STEPS = 100  # enough for every bit of every state to matter; all of them would take long


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares ``demo`` and its options."""
    parser = commands.add_parser(
        "demo",
        help="train a small Transformer with AdaMod and with Adam",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser)
    parser.set_defaults(main=main, parser=parser)


def main(arguments: argparse.Namespace) -> int:
    """Runs the demo; returns 1 if the backend and the reference differ in any bit, else 0."""
    settings = Settings.from_arguments(arguments)
    console = open_console()
    try:
        extras.require_matplotlib()
        device = check_device(settings.device)
        contestants = _contestants(settings, device)
        corpus = text.load()
        corpus.check_context(settings.context)
        settings.out.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        arguments.parser.error(str(error))

    console.line(corpus.describe())
    with deterministic():
        trainings = [Training(c, settings, corpus, device) for c in contestants]
        unequal, found = _train(console, trainings, settings)
    runs = [training.run for training in trainings]

    figure = settings.out / "demo.png"
    plot.draw(figure, settings, runs, found)
    report.write_record(
        settings.out / "results.json",
        settings=settings,
        versions=versions(),
        text=corpus,
        runs=runs,
        difference=unequal,
        rates=found,
    )
    report.print_findings(console, settings, runs, unequal, found)
    console.line(f"figure: {figure.resolve()}")
    return 1 if unequal else 0


def _contestants(settings: Settings, device: torch.device) -> tuple[Contestant, ...]:
    asked = None if settings.backend == "auto" else settings.backend
    backend = backends.choose(asked, torch.empty(1, dtype=torch.float32, device=device))

    def adamod(name: str | None, parameters: list[nn.Parameter]) -> Optimizer:
        return AdaMod(parameters, lr=settings.lr, beta3=settings.beta3, backend=name)

    def adam(parameters: list[nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, lr=settings.lr, fused=True)

    return (
        Contestant("AdaMod", backend.name if backend else "reference", partial(adamod, asked)),
        Contestant("AdaMod", "reference", partial(adamod, "reference")),
        Contestant("Adam", "torch fused", adam),
    )


def _train(
    console: Console, trainings: list[Training], settings: Settings
) -> tuple[Difference | None, list[rates.Rates]]:
    """Does all steps, in turn.

    Returns:
        Where AdaMod and its reference differ after the steps that both did, and the learning rates
        of AdaMod in some steps.
    """
    adamod, reference, adam = trainings
    compare_at = min(REFERENCE_STEPS, settings.steps)
    rates_at = {*RATES_AT, settings.steps}
    unequal, found = None, []
    with console.progress("training", settings.steps) as advance:
        for step in range(1, settings.steps + 1):
            losses = [training.step() for training in (adamod, adam)]
            if step <= compare_at:
                reference.step()
            if step == compare_at:
                unequal = difference(adamod.tensors(), reference.tensors())
            if step in rates_at:
                found.append(rates.measure(adamod.optimizer, step))
            advance(step, "loss: AdaMod {:.3f}, Adam {:.3f}".format(*losses))
    return unequal, found
