"""A run's course: the mean training loss since the last mark, and what was measured there."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class Curve:
    """Filled by a training loop; a device is waited for at marks alone."""

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self.steps: list[int] = []
        self.training: list[float] = []
        self.measured: list[float] = []
        self.diverged = False
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def mark(self, step: int, measured: float) -> None:
        """``measured`` after ``step`` steps."""
        training = sum(loss.item() for loss in self._losses) / len(self._losses)
        self._losses.clear()
        if not (math.isfinite(training) and math.isfinite(measured)):
            self.diverged = True  # JSON has no such numbers, and no figure could show them
            return
        self.steps.append(step)
        self.training.append(training)
        self.measured.append(measured)

    def facts(self) -> dict[str, Any]:
        """What a record keeps."""
        values = {"training_loss": self.training, self.measure: self.measured}
        rounded = {name: [float(f"{y:.5g}") for y in column] for name, column in values.items()}
        return {"diverged": self.diverged, "curve": {"step": self.steps, **rounded}}
