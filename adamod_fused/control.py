"""What holds for all gradients of one step: the factor they are multiplied by, and whether to skip.

Mixed precision divides gradients by a loss scale and skips steps whose gradients are not finite;
clipping multiplies them by a coefficient. All of it is two numbers that stay on the device: the
kernels read them, and no pass over the gradients is spent on them.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState

from .backends.extension import in_float_environment
from .fingerprints import Fingerprint
from .validation import check_range

EPS = 1e-6
"""Added to the norm in the clip coefficient's denominator, as torch.nn.utils.clip_grad_norm_."""


class Control(NamedTuple):
    """What a step is given."""

    values: Tensor
    """float32 ``[2]``, as csrc's ``Control``: the factor and, not 0, that the step is skipped."""
    may_skip: bool
    """False where the second number is known to be 0."""


class Clip(NamedTuple):
    """What ``clip_grad_norm_`` leaves for the next step."""

    factor: Tensor
    """0-dim float32, of the clip coefficient and the inverse of the loss scale."""
    found_inf: Tensor
    """0-dim float32, 1 where a gradient is not finite, for a loss scale folded in; else 0."""
    scaled: bool
    """Whether a loss scale is folded in."""
    fingerprint: Fingerprint
    """Of the gradients that were clipped."""

    def __deepcopy__(self, _: dict[int, Any]) -> Clip:
        return self  # of the same gradients, so that a step with copies of them raises

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a pickle holds no gradients


class HandedOver(NamedTuple):
    """That a scaler takes an optimizer's gradients, scaled as they are, for unscaled."""

    grad_scaler: GradScaler
    found_inf: Tensor
    """What it was told."""

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Until the scaler's update; what a real ``unscale_`` finds is another tensor."""
        told = self.grad_scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        return any(tensor is self.found_inf for tensor in told.values())


def control(
    grad_scale: Tensor | None, found_inf: Tensor | None, clip: Clip | None
) -> Control | None:
    """The control of a step; None where it would change nothing.

    Args:
        grad_scale: what the gradients were multiplied by, of one element.
        found_inf: not 0 where the step is to be skipped, of one element.
        clip: what ``clip_grad_norm_`` found.
    """
    if grad_scale is None and found_inf is None and clip is None:
        return None
    return _combined(grad_scale, found_inf, clip)


@in_float_environment
def _combined(grad_scale: Tensor | None, found_inf: Tensor | None, clip: Clip | None) -> Control:
    factors = [clip.factor] if clip is not None else []
    if grad_scale is not None:
        factors.append(inverse(grad_scale))
    skips = [clip.found_inf] if clip is not None and clip.scaled else []
    if found_inf is not None:
        skips.append(found_inf.reshape(()).float())
    device = (factors or skips)[0].device
    factor = functools.reduce(operator.mul, (f.to(device) for f in factors)) if factors else None
    skip = functools.reduce(operator.add, (s.to(device) for s in skips)) if skips else None
    one = torch.ones((), dtype=torch.float32, device=device) if factor is None else factor
    return Control(torch.stack((one, torch.zeros_like(one) if skip is None else skip)), bool(skips))


def inverse(grad_scale: Tensor) -> Tensor:
    """One over the loss scale, rounded once to float32, as ``GradScaler.unscale_`` does."""
    return grad_scale.reshape(()).double().reciprocal().float()


@torch.inference_mode(False)  # outside of it the scaler writes to what was found here
@torch.no_grad()
@in_float_environment
def clip_of(
    sum_squares: Tensor, max_norm: float, scale: Tensor | None, fingerprint: Fingerprint
) -> tuple[Tensor, Clip]:
    """The norm of the unscaled gradients, 0-dim float32, and what the step needs of it.

    Args:
        sum_squares: of all gradients as they are, 0-dim float64.
        max_norm: the bound on the norm.
        scale: what the gradients were multiplied by, or None.
        fingerprint: of the gradients.
    """
    unscale = torch.ones_like(sum_squares, dtype=torch.float32)
    found_inf = torch.zeros_like(unscale)
    if scale is not None:
        unscale = inverse(scale).to(sum_squares.device)
        # float64 has room for the square of any narrower number: only inf and NaN leave it. Of
        # float64 gradients those beyond 1e154 do too.
        found_inf = sum_squares.isfinite().logical_not().float()
    norm = (sum_squares.sqrt() * unscale.double()).float()
    coefficient = (max_norm / (norm + EPS)).clamp(max=1.0)
    return norm, Clip(unscale * coefficient, found_inf, scale is not None, fingerprint)


def scale_of(
    grad_scaler: GradScaler, optimizer: torch.optim.Optimizer, is_handed_over: bool
) -> Tensor | None:
    """The scale that ``optimizer``'s gradients still carry; None where there is none.

    ``is_handed_over``: they are unscaled in the scaler's eyes only.

    Raises:
        RuntimeError: the scaler has seen a step of this optimizer since its last update.
    """
    if not grad_scaler.is_enabled():
        return None
    stage = grad_scaler._per_optimizer_states[id(optimizer)]["stage"]
    if stage is OptState.STEPPED:
        raise RuntimeError(
            "clip_grad_norm_() is called after step(); call the scaler's update() in between"
        )
    if stage is OptState.UNSCALED and not is_handed_over:
        return None
    scale = grad_scaler._get_scale_async()
    if scale is None:
        raise RuntimeError(
            "the scaler has no scale yet: call scaler.scale(loss).backward() before "
            "clip_grad_norm_()"
        )
    return scale


def hand_over(
    grad_scaler: GradScaler, optimizer: torch.optim.Optimizer, found_inf: Tensor
) -> HandedOver:
    """Lets the scaler know what a pass over the gradients found, so that it makes none itself.

    To it the gradients are as after ``unscale_``: it does not look at them again, hands over no
    scale, and adapts its own to ``found_inf``.
    """
    state = grad_scaler._per_optimizer_states[id(optimizer)]
    state["found_inf_per_device"] = {found_inf.device: found_inf}
    state["stage"] = OptState.UNSCALED
    return HandedOver(grad_scaler, found_inf)


def check_max_norm(max_norm: Any) -> float:
    """``max_norm`` as a number; infinity clips nothing.

    Raises:
        TypeError, ValueError: it is no number, negative or NaN.
    """
    if not (isinstance(max_norm, float) and math.isinf(max_norm)):
        check_range("max_norm", max_norm, 0.0)
    elif max_norm < 0:
        raise ValueError(f"max_norm must be >= 0, got {max_norm!r}")
    return float(max_norm)
