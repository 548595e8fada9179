"""Rows as ``bound_stats()`` gives them, and an optimizer that has nothing else to give.

Gradients are log-normal and constant, so that s = (1 - beta3**t) eta; some are always zero.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from adamod_fused.bound_stats import HISTOGRAM_EDGES

LR, BETA3, EPS = 1e-3, 0.99, 1e-8


@functools.cache
def row(name: str, numel: int, step: int, dead: int = 0, group: int = 0, index: int = 0) -> dict:
    """A tensor's row of ``step``, or one with the same columns for a group."""
    random = np.random.default_rng([numel, index])
    grad = np.exp(random.normal(-7, 2, numel) - step / 2000)
    grad[:dead] = 0
    noise = np.exp(random.normal(0, 0.3, numel) * (1 - BETA3**step))
    eta = LR / (grad * noise + EPS)
    s = (1 - BETA3**step) * LR / (grad + EPS)
    used = np.minimum(eta, s)
    return {
        "step": step,
        "group": group,
        "index": index,
        "name": name,
        "numel": numel,
        "lr": LR,
        "bounded": float((s < eta).mean()),
        **_distribution("rate", eta),
        **_distribution("bounded_rate", used),
        "grad_norm": float(np.linalg.norm(grad)),
        "update_norm": float(np.linalg.norm(used * grad)),
        "dead": dead,
        "nonfinite": 0,
    }


def _distribution(name: str, rates: np.ndarray) -> dict:
    counts, _ = np.histogram(np.clip(rates, HISTOGRAM_EDGES[0], 2.0**23), HISTOGRAM_EDGES)
    return {
        f"{name}_min": float(rates.min()),
        f"{name}_max": float(rates.max()),
        f"{name}_mean": float(rates.mean()),
        f"{name}_hist": counts.tolist(),
    }


class FakeAdaMod:
    """Tracks every ``every`` steps, as AdaMod(track_bound=every) would."""

    def __init__(self, names: tuple[str, ...] = ("a.weight", "b.bias"), every: int = 1) -> None:
        self.names, self.every = names, every
        self.state: dict[str, dict[str, torch.Tensor]] = {}
        self.steps = self.tracked = self.bound_looks = self.look = 0

    def step(self) -> None:
        self.steps += 1
        self.state["first"] = {"step": torch.tensor(float(self.steps))}
        if (self.steps - 1) % self.every == 0:
            self.tracked = self.steps
            self.bound_looks += 1
            self.look = self.bound_looks

    def bound_stats(self, by: str = "tensor", after: int = 0) -> list[dict]:
        if self.look <= after:
            return []
        if by == "group":
            return [row("group 0", 500, self.tracked) | {"index": None}]
        return [
            row(name, 100 + 40 * i, self.tracked, dead=5 * (i % 2), index=i)
            for i, name in enumerate(self.names)
        ]
