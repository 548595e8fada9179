"""The demo's order of work: check everything, train three times, compare, draw, tell."""

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
from .compare import difference
from .settings import Settings, add_arguments, check_device
from .train import Contestant, Run, deterministic, train

DESCRIPTION = (
    "Train a small Transformer on Python's own help texts three times, from the same start, on the "
    "same batches, without warm-up: with AdaMod on the fastest backend, with AdaMod's pure-PyTorch "
    "reference, which must end with the same bits, and with torch.optim.Adam. Print losses and "
    "optimizer times, draw demo.png and write results.json. The exit code is 1 if a bit differs."
)

RATES_AT = (1, 10, 100)  # steps, besides the last


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares ``demo`` and its options."""
    parser = commands.add_parser(
        "demo",
        help="train a small Transformer with AdaMod, with its reference and with Adam",
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
    found: list[rates.Rates] = []
    with deterministic():
        runs = [
            _train(console, contestant, settings, corpus, device, found if first else None)
            for contestant, first in zip(contestants, (True, False, False), strict=True)
        ]
    adamod, reference, _ = runs
    unequal = difference(adamod.tensors, reference.tensors)

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
    console: Console,
    contestant: Contestant,
    settings: Settings,
    corpus: text.Text,
    device: torch.device,
    found: list[rates.Rates] | None,
) -> Run:
    """One run with its progress; the learning rates are appended to ``found`` if it is a list."""
    rates_at = {*RATES_AT, settings.steps}
    with console.progress(contestant.label, settings.steps) as advance:

        def after_step(step: int, optimizer: Optimizer, loss: float) -> None:
            advance(step, f"loss {loss:.3f}")
            if found is not None and step in rates_at:
                found.append(rates.measure(optimizer, step))

        return train(contestant, settings, corpus, device, after_step=after_step)
