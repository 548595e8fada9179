"""The optimizers and schedules that are compared; nothing is tuned for one of them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from adamod_fused import AdaMod

MOMENTUM = 0.9
DROP = 0.1
DROP_AT = 0.75  # share of the steps


@dataclass(frozen=True)
class Contender:
    """An optimizer with its settings; betas and eps are the defaults, (0.9, 0.999) and 1e-8."""

    rule: str
    """Of ``RULES``."""
    lr: float
    warmup: bool = False
    beta3: float | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """Without the learning rate."""
        extra = {
            "beta3": f" beta3={self.beta3:g}" if self.beta3 is not None else "",
            "variant": " released" if self.variant == "released" else "",
            "warmup": " + warm-up" if self.warmup else "",
        }
        return NAMES[self.rule] + "".join(extra.values())

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return RULES[self.rule](self, parameters)


def adamod(lr: float, beta3: float = 0.999, variant: str = "paper") -> Contender:
    return Contender("adamod", lr, beta3=beta3, variant=variant)


def _adamod(contender: Contender, parameters: Iterable[nn.Parameter]) -> Optimizer:
    assert contender.beta3 is not None
    assert contender.variant is not None
    return AdaMod(parameters, lr=contender.lr, beta3=contender.beta3, variant=contender.variant)


RULES: dict[str, Callable[[Contender, Iterable[nn.Parameter]], Optimizer]] = {
    "sgdm": lambda c, parameters: torch.optim.SGD(parameters, lr=c.lr, momentum=MOMENTUM),
    "adam": lambda c, parameters: torch.optim.Adam(parameters, lr=c.lr, fused=True),
    "radam": lambda c, parameters: torch.optim.RAdam(parameters, lr=c.lr),
    "adamod": _adamod,
}
NAMES = {"sgdm": "SGDM", "adam": "Adam", "radam": "RAdam", "adamod": "AdaMod"}


def inverse_root(step: int, warmup: int, rises: bool) -> float:
    """The schedule of Vaswani et al. as a share of its peak, in the 0-based ``step``.

    Without the rise it stands at the peak instead; the fall is the same.
    """
    done = (step + 1) / warmup
    return min(done if rises else 1.0, done**-0.5)


def one_drop(step: int, steps: int) -> float:
    """To a tenth after three quarters, as in the authors' training on CIFAR."""
    return DROP if step >= DROP_AT * steps else 1.0
