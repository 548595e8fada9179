"""The learning rates AdaMod used in its last step, read from the optimizer's public state.

Of every element: ``eta``, Adam's rate lr / (sqrt(v / bias_correction2) + eps), and min(eta, s),
the rate that AdaMod allowed. The moments in the state are those the step itself used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

BINS_PER_DECADE = 20
DECADES = (-10, 8)


@dataclass(frozen=True)
class Distribution:
    """How one rate spreads over all elements of the model."""

    median: float
    percentile_99: float
    largest: float
    histogram: list[float]
    """Share of the elements per bin of log10(rate); ``bin_edges`` are its edges."""


@dataclass(frozen=True)
class Rates:
    """Both rates in one step, over all elements of the model."""

    step: int
    adam: Distribution
    bounded: Distribution
    share_bounded: float
    """Share of the elements whose rate the bound lowered."""


def measure(optimizer: Optimizer, step: int) -> Rates:
    """The distributions after ``step`` steps of a ``variant="paper"`` AdaMod."""
    adam, bounded = [], []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            bias_correction2 = 1 - group["betas"][1] ** float(state["step"])
            denom = (state["exp_avg_sq"].double() / bias_correction2).sqrt() + group["eps"]
            eta = group["lr"] / denom
            adam.append(eta.flatten())
            bounded.append(torch.minimum(eta, state["exp_avg_lr"].double()).flatten())
    etas, limited = torch.cat(adam).cpu(), torch.cat(bounded).cpu()
    return Rates(
        step=step,
        adam=_distribution(etas),
        bounded=_distribution(limited),
        share_bounded=(limited < etas).double().mean().item(),
    )


def bin_edges() -> list[float]:
    """log10 of the rates between which the histograms count."""
    low, high = DECADES
    return [low + index / BINS_PER_DECADE for index in range((high - low) * BINS_PER_DECADE + 1)]


def _distribution(rates: Tensor) -> Distribution:
    low, high = DECADES
    ordered = rates.sort().values
    logarithms = ordered.log10().clamp(low, high)
    counts = torch.histc(logarithms, (high - low) * BINS_PER_DECADE, low, high)
    last = len(ordered) - 1
    return Distribution(
        median=ordered[last // 2].item(),
        percentile_99=ordered[round(0.99 * last)].item(),
        largest=ordered[last].item(),
        histogram=(counts / len(ordered)).tolist(),
    )
