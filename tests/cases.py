"""The table that parity tests run through: hyperparameters, sizes, dtypes. Never all defaults."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Case(NamedTuple):
    """Hyperparameters of one or more param groups, with the reason why they are tested."""

    description: str
    groups: tuple[dict[str, Any], ...]
    lr_schedule: tuple[float, ...] = ()  # factors of lr, repeated from step to step


# Three groups that differ in everything, none of them the defaults.
GROUPS: tuple[dict[str, Any], ...] = (
    {"lr": 1e-2, "weight_decay": 0.1, "beta3": 0.99},
    {"lr": 2e-3, "betas": (0.5, 0.99), "beta3": 0.9, "variant": "released"},
    {"lr": 5e-4, "eps": 1e-3, "maximize": True, "beta3": 0.9999},
)

CASES = (
    Case("weight decay, both bounds at work", ({"lr": 3e-3, "weight_decay": 0.1, "beta3": 0.99},)),
    Case("no bound", ({"lr": 1e-2, "betas": (0.8, 0.95), "beta3": 0.0, "eps": 1e-6},)),
    Case("slow bound", ({"lr": 0.1, "betas": (0.95, 0.9), "beta3": 0.9999, "eps": 1e-10},)),
    Case("no momentum", ({"lr": 2e-3, "betas": (0.0, 0.5), "weight_decay": 0.3},)),
    Case("maximize", ({"lr": 5e-3, "maximize": True, "weight_decay": 0.02, "beta3": 0.9},)),
    Case("released", ({"lr": 3e-3, "variant": "released", "weight_decay": 0.05},)),
    Case(
        "released, maximize, no bound",
        ({"lr": 1e-3, "variant": "released", "maximize": True, "beta3": 0.0, "eps": 1e-4},),
    ),
    Case(
        "a schedule that drops and rises",
        ({"lr": 1e-2, "weight_decay": 0.01, "beta3": 0.5},),
        (1.0, 0.1, 0.0, 3.0),
    ),
    Case(
        "groups that differ in everything",
        GROUPS,
        (1.0, 0.5),
    ),
)

# Around every width at which a loop, a vector, a block or a claim of work ends.
SIZES = (0, 1, 3, 4, 5, 15, 16, 17, 127, 128, 129, 1023, 1024, 1025, 4097, 65537)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
