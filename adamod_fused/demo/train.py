"""Training runs: the same model, batches and arithmetic whatever the optimizer.

Runs take their steps in turn, so that a change of the machine's speed affects all of them.

Bit-for-bit comparison needs more than equal seeds: the initial model and all batches are drawn on
the CPU, attention takes the one implementation whose backward pass is deterministic everywhere,
and PyTorch is told to refuse any other operation that is not.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from .model import Transformer
from .settings import Settings
from .text import VOCABULARY, Text

VALIDATIONS = 8  # per run, besides the one before the first step
VALIDATION_WINDOWS = 256  # each of `context` bytes, spread evenly over the validation text
VALIDATION_BATCH = 32


@dataclass(frozen=True)
class Contestant:
    """An optimizer to train with."""

    optimizer: str
    backend: str
    build: Callable[[list[nn.Parameter]], Optimizer]

    @property
    def label(self) -> str:
        return f"{self.optimizer} ({self.backend})"


@dataclass
class Run:
    """What one training run showed. Losses are mean cross-entropies in nats per byte."""

    contestant: Contestant
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, loss) pairs; the first is before any step."""
    optimizer_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    @property
    def last_losses(self) -> list[float]:
        """The last twentieth of the run: the loss of a single batch is mostly noise."""
        return self.losses[-max(1, len(self.losses) // 20) :]

    @property
    def train_loss(self) -> float:
        return statistics.fmean(self.last_losses)

    @property
    def validation_loss(self) -> float:
        return self.validation[-1][1]

    @property
    def optimizer_milliseconds(self) -> float:
        return 1e3 * statistics.median(self.optimizer_seconds)

    @property
    def step_milliseconds(self) -> float:
        return 1e3 * statistics.median(self.step_seconds)


class Training:
    """A run from scratch, one step at a time."""

    def __init__(
        self, contestant: Contestant, settings: Settings, text: Text, device: torch.device
    ) -> None:
        torch.manual_seed(settings.seed)
        self._device = device
        self._model = Transformer(
            vocabulary=VOCABULARY,
            width=settings.width,
            layers=settings.layers,
            context=settings.context,
        ).to(device)
        self.optimizer = contestant.build(list(self._model.parameters()))
        self._windows = _validation_windows(text.validation, settings.context).to(device)
        steps = settings.steps
        self._validate_at = {steps * part // VALIDATIONS for part in range(1, VALIDATIONS + 1)}
        self._batches = _batches(text.train.to(device), settings)
        self.run = Run(contestant)
        self.run.validation.append((0, _evaluate(self._model, self._windows)))

    def step(self) -> float:
        """Does one step and returns its loss."""
        run, batch = self.run, next(self._batches)
        with _timed(self._device, run.step_seconds):
            loss = _loss(self._model, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            with _timed(self._device, run.optimizer_seconds):
                self.optimizer.step()
        run.losses.append(loss.item())
        if len(run.losses) in self._validate_at:
            run.validation.append((len(run.losses), _evaluate(self._model, self._windows)))
        return run.losses[-1]

    def tensors(self) -> dict[str, Tensor]:
        """Copies of every parameter and every optimizer state, by name."""
        tensors = {}
        for name, parameter in self._model.named_parameters():
            tensors[name] = parameter.detach().cpu().clone()
            for state, tensor in self.optimizer.state[parameter].items():
                tensors[f"{name}'s {state}"] = tensor.detach().cpu().clone()
        return tensors


@contextmanager
def deterministic() -> Iterator[None]:
    """The same bits in every run, within one device and one number of threads."""
    # cuBLAS reads this when it starts; deterministic mode refuses to multiply matrices without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # its attribute is a property that mypy cannot see
    fill_before = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills fresh memory with NaN, which would be timed too.
    memory.fill_uninitialized_memory = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        memory.fill_uninitialized_memory = fill_before
        torch.use_deterministic_algorithms(before)


def _batches(tokens: Tensor, settings: Settings) -> Iterator[Tensor]:
    """Random windows of context + 1 bytes, so that each byte of the context has its successor."""
    generator = torch.Generator().manual_seed(settings.seed)
    window = torch.arange(settings.context + 1, device=tokens.device)
    starts = torch.randint(
        len(tokens) - settings.context,
        (settings.steps, settings.batch),
        generator=generator,
        device="cpu",
    )
    for start in starts.to(tokens.device):
        yield tokens[start[:, None] + window]


def _validation_windows(tokens: Tensor, context: int) -> Tensor:
    windows = tokens.unfold(0, context + 1, context)
    count = min(VALIDATION_WINDOWS, len(windows))
    spread = torch.linspace(0, len(windows) - 1, count, dtype=torch.float32, device="cpu")
    return windows[spread.long()]


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def _evaluate(model: nn.Module, windows: Tensor) -> float:
    losses = [
        _loss(model, part).item() * len(part) for part in torch.split(windows, VALIDATION_BATCH)
    ]
    return sum(losses) / len(windows)


@contextmanager
def _timed(device: torch.device, seconds: list[float]) -> Iterator[None]:
    """Appends the wall time of the block, on a GPU with the work that it queued."""
    _synchronize(device)
    start = time.perf_counter()
    yield
    _synchronize(device)
    seconds.append(time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
