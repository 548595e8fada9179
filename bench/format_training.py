"""Whether training ends elsewhere with coded states: final losses over seeds, and a test of them.

Two tasks that need no download: the demo's Transformer on its text, and a small convolutional net
on images made here, bars of four directions under noise.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adamod_fused import AdaMod
from adamod_fused.demo import text
from adamod_fused.demo.model import Transformer
from adamod_fused.formats import STATE_FORMATS

CONTEXT = 32
BATCH = 16
SIDE = 16  # of an image, in pixels
FINAL_SHARE = 5  # the loss of a run is the mean over its last fifth


@dataclass(frozen=True)
class Task:
    """A model, and batches for its loss; the same ones for the same seed."""

    make_model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, torch.Generator], Tensor]
    lr: float


def transformer() -> Task:
    tokens = text.load().train

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH,), generator=generator)
        batch = torch.stack([tokens[start : start + CONTEXT + 1] for start in starts.tolist()])
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def model() -> nn.Module:
        return Transformer(vocabulary=text.VOCABULARY, width=32, layers=2, context=CONTEXT)

    return Task(model, loss, lr=3e-3)


def images(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Images ``[count, 1, SIDE, SIDE]`` of a bar under noise, and its direction, one of 4."""
    labels = torch.randint(4, (count,), generator=generator)
    where = torch.randint(4, SIDE - 4, (count, 2, 1, 1), generator=generator)
    grid = torch.arange(SIDE)
    y = (grid.view(1, -1, 1) - where[:, 0]).expand(-1, SIDE, SIDE)
    x = (grid.view(1, 1, -1) - where[:, 1]).expand(-1, SIDE, SIDE)
    across = torch.stack([y, x, x - y, x + y])[labels, torch.arange(count)]
    bars = (across == 0) & (y.abs() <= 4) & (x.abs() <= 4)
    noise = torch.randn(count, SIDE, SIDE, generator=generator)
    return (bars + 0.4 * noise).unsqueeze(1), labels


def convolutional() -> Task:
    def model() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
        )

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        inputs, labels = images(generator, 2 * BATCH)
        return F.cross_entropy(model(inputs), labels)

    return Task(model, loss, lr=3e-3)


TASKS = {"Transformer": transformer, "convolutional": convolutional}


def final_loss(task: Task, state_format: str, seed: int, steps: int) -> float:
    """The mean loss over the end of one run; the seed is that of model, batches and rounding."""
    torch.manual_seed(seed)
    model = task.make_model()
    generator = torch.Generator().manual_seed(seed)
    optimizer = AdaMod(
        model.parameters(),
        lr=task.lr,
        beta3=0.99,  # a warm-up that is over in a run so short
        state_format=state_format,
        min_coded_numel=0,
        seed=seed,
    )
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(model, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses[-max(1, steps // FINAL_SHARE) :])


def final_losses(task: Task, seeds: Sequence[int], steps: int) -> dict[str, list[float]]:
    """Of each state format, of each seed."""
    return {
        state_format: [final_loss(task, state_format, seed, steps) for seed in seeds]
        for state_format in STATE_FORMATS
    }


def permutation_test(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p of equal means: how many ways to deal the values lie as far apart.

    Exact; of 5 and 5 values the least there is is 2 / 252.
    """
    pooled = [*a, *b]
    total = sum(pooled)

    def distance(group: Sequence[float]) -> float:
        rest = (total - sum(group)) / (len(pooled) - len(group))
        return abs(sum(group) / len(group) - rest)

    found = distance(a) * (1 - 1e-12)  # the same sum in another order is rounded otherwise
    distances = [distance(group) for group in itertools.combinations(pooled, len(a))]
    return sum(d >= found for d in distances) / len(distances)
