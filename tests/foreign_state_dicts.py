"""What other packages' optimizers saved, written down, and the steps that they made next.

All ran on the same float64 parameters and gradients: two steps, ``state_dict()``, a third step.
Made with adamod 0.0.3, torch_optimizer 0.3.0 and pytorch_optimizer 4.1.0. The third parameter had
its first gradient in the third step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

START = ([0.5, -1.25, 2.0], [[1.5], [-0.75]], [3.0])
GRADS = (
    ([0.25, -0.5, 1.0], [[2.0], [-0.125]], None),
    ([-0.75, 0.5, 0.0625], [[0.5], [0.25]], None),
    ([1.0, -0.25, 0.5], [[-1.0], [0.375]], [0.75]),
)
LR, SECOND_LR, BETAS, BETA3, EPS, WEIGHT_DECAY = 0.125, 0.25, (0.75, 0.9375), 0.5, 0.001, 0.0625

AFTER_TWO = (
    [0.5017882856746745, -1.1856535265985522, 1.8403596982073092],
    [[1.213648339698638], [-0.7391490609644225]],
    [3.0],
)
AFTER_THREE = (
    [0.4563078487629356, -1.1567792423258898, 1.7333091946734938],
    [[1.1726750243330566], [-0.9309928457085852]],
    [2.875663129973475],
)
# pytorch_optimizer's first step of the third parameter has the bias corrections of step 3.
AFTER_THREE_BY_GROUP = (*AFTER_THREE[:2], [2.909766908142401])


def _state() -> dict[int, dict[str, Any]]:
    values = {
        0: {
            "exp_avg": [-0.140625, 0.03125, 0.203125],
            "exp_avg_sq": [0.038818359375, 0.0302734375, 0.058837890625],
            "exp_avg_lr": [0.7431674930397, 0.53209743696716, 0.3286041205938655],
        },
        1: {
            "exp_avg": [[0.5], [0.0390625]],
            "exp_avg_sq": [[0.25], [0.00482177734375]],
            "exp_avg_lr": [[0.3232023225987319], [3.3494800733678627]],
        },
    }
    return {
        key: {name: torch.tensor(value, dtype=torch.float64) for name, value in entries.items()}
        for key, entries in values.items()
    }


def authors(beta3: str = "beta3") -> dict[str, Any]:
    """adamod 0.0.3; torch_optimizer's is the same. ``gamma`` for the authors' first commit."""
    shared = {"betas": BETAS, beta3: BETA3, "eps": EPS}
    return {
        "state": {key: {"step": 2, **entries} for key, entries in _state().items()},
        "param_groups": [
            {"lr": LR, **shared, "weight_decay": WEIGHT_DECAY, "params": [0]},
            {"lr": SECOND_LR, **shared, "weight_decay": 0.0, "params": [1, 2]},
        ],
    }


def pytorch_optimizer(version: str = "4.1") -> dict[str, Any]:
    shared = {
        "betas": (*BETAS, BETA3),
        "weight_decouple": True,
        "fixed_decay": False,
        "eps": EPS,
        "step": 2,
        **({"foreach": None} if version == "4.1" else {"adam_debias": False}),
    }
    return {
        "state": _state(),
        "param_groups": [
            {"lr": LR, "weight_decay": WEIGHT_DECAY, **shared, "params": [0]},
            {"lr": SECOND_LR, "weight_decay": 0.0, **shared, "params": [1, 2]},
        ],
    }


# A parameter's states as torch.optim.Adam has them after three steps; torch < 1.12 counted in int.
ADAM_STATE = {
    "step": 3,
    "exp_avg": torch.tensor([0.5, -0.25, 0.0]),
    "exp_avg_sq": torch.tensor([0.25, 4.0, 0.0]),
}
ADAM_GROUP = {
    "lr": 0.5,
    "betas": (0.5, 0.75),
    "eps": 0.125,
    "weight_decay": 0,
    "amsgrad": False,
    "params": [0],
}


def adam(**changes: Any) -> dict[str, Any]:
    """A state dict of torch.optim.Adam, as its oldest versions wrote it; changes to its group."""
    return copy.deepcopy({"state": {0: ADAM_STATE}, "param_groups": [{**ADAM_GROUP, **changes}]})
