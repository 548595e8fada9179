"""The learning rates of every element in a step, read from an optimizer's public state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from adamod_fused import AdaMod

BINS_PER_DECADE = 4
DECADES = (-9, 6)
BINS = (DECADES[1] - DECADES[0]) * BINS_PER_DECADE
QUANTILES = {"median": 0.5, "p99": 0.99, "max": 1.0}


def snapshot(optimizer: Optimizer, step: int) -> dict[str, Any] | None:
    """Of eta, and of min(eta, s) where there is a bound; None for rules without such rates.

    Elements that never had a gradient (v = 0) have no say: their rate, lr / eps, moves nothing.
    They are counted. None also where no element has a say, or a rate is not finite: the run has
    diverged, and JSON has no such numbers.
    """
    released = any(group.get("variant") == "released" for group in optimizer.param_groups)
    if not isinstance(optimizer, (Adam, AdaMod)) or released:
        return None
    rates: dict[str, list[Tensor]] = {"eta": [], "bounded": []}
    silent = total = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            moved = state["exp_avg_sq"] != 0
            total += moved.numel()
            silent += int((~moved).sum())
            correction = 1 - group["betas"][1] ** float(state["step"])
            denominator = (state["exp_avg_sq"][moved].double() / correction).sqrt() + group["eps"]
            eta = group["lr"] / denominator
            rates["eta"].append(eta)
            if isinstance(optimizer, AdaMod):
                rates["bounded"].append(torch.minimum(eta, state["exp_avg_lr"][moved].double()))
    found = {name: torch.cat(parts) for name, parts in rates.items() if parts}
    if silent == total or not all(bool(values.isfinite().all()) for values in found.values()):
        return None
    distributions = {name: _distribution(values) for name, values in found.items()}
    return {"step": step, "silent": silent / total, **distributions}


def edges() -> list[float]:
    """log10 of the rates between which histograms count."""
    return [DECADES[0] + index / BINS_PER_DECADE for index in range(BINS + 1)]


def _distribution(rates: Tensor) -> dict[str, Any]:
    ordered = rates.cpu().sort().values
    last = len(ordered) - 1
    # Rounding may take a rate of exactly an edge into the bin below: of no weight in a figure.
    counts = torch.histc(ordered.log10().clamp(*DECADES), BINS, *DECADES)
    return {
        **{name: ordered[round(share * last)].item() for name, share in QUANTILES.items()},
        "histogram": [round(share, 6) for share in (counts / len(ordered)).tolist()],
    }
