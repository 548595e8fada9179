"""Trains a convolutional net on Fashion-MNIST: losses and test accuracy of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from .contenders import Contender, one_drop
from .convolutional import network
from .curves import Curve
from .fashion import CLASSES, Images
from .settings import Classification

EVALUATION_BATCH = 200
SHIFT = 4  # pixels, at most


def train(
    settings: Classification,
    contender: Contender,
    seed: int,
    data: dict[str, Images],
    device: str,
) -> dict[str, Any]:
    """One run; the seed is that of the weights and of the batches."""
    torch.manual_seed(seed)
    images, labels = data["training"]
    model = network(settings.shape, CLASSES)
    model(images[:1])  # gives the last layer its size
    model.to(device)
    optimizer = contender.optimizer(model.parameters())
    schedule = LambdaLR(optimizer, lambda step: one_drop(step, settings.steps))
    generator = torch.Generator().manual_seed(seed)
    curve = Curve("accuracy")
    for step, rows in enumerate(endless_rows(settings, generator), start=1):
        batch = augmented(images[rows], generator) if settings.augmented else images[rows]
        loss = F.cross_entropy(model(batch.to(device)), labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        curve.add(loss)
        if step % settings.evaluate_every == 0:
            curve.mark(step, accuracy(model, data["test"], device))
        if step == settings.steps or curve.diverged:
            break
    final = 100 / CLASSES if curve.diverged else curve.measured[-1]
    return {"final": {"accuracy": final}, **curve.facts()}


def endless_rows(settings: Classification, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each batch, shuffled anew for each epoch; the odd rest of an epoch is left out."""
    while True:
        order = torch.randperm(settings.images, generator=generator)
        yield from torch.split(order[: settings.evaluate_every * settings.batch], settings.batch)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to ``SHIFT`` pixels and, every second one, mirrored."""
    count, _, height, width = images.shape
    padded = F.pad(images, [SHIFT] * 4, value=images.min().item())
    top, left = torch.randint(2 * SHIFT + 1, (2, count, 1, 1), generator=generator)
    mirrored = torch.randint(2, (count, 1, 1), generator=generator).bool()
    columns = torch.arange(width).expand(count, 1, width)
    columns = torch.where(mirrored, width - 1 - columns, columns) + left
    rows = torch.arange(height).view(1, height, 1) + top
    return padded[torch.arange(count).view(count, 1, 1), 0, rows, columns].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, device: str) -> float:
    """In percent; NaN if the model gives such."""
    model.eval()
    right = 0
    batches = (torch.split(part, EVALUATION_BATCH) for part in data)
    for pixels, labels in zip(*batches, strict=True):
        logits = model(pixels.to(device))
        if not bool(logits.isfinite().all()):
            model.train()
            return float("nan")
        right += int((logits.argmax(1).cpu() == labels).sum())
    model.train()
    return 100 * right / len(data.labels)
