"""The rules in Triton, line for line csrc/rules: what one element does in one step.

A rule gets the address of its row of scalars (float32, in the order of ``Scalars``), the param,
the grad and three states in float32, and returns the new param and states; a state beyond its
``num_states`` is a placeholder to hand back. It takes square root and division from ``ieee``:
Triton's plain ones are approximations on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .ieee import div_rn, sqrt_rn


class Rule(NamedTuple):
    """What the engine knows of a rule."""

    update: triton.JITFunction
    num_states: int


@triton.jit
def adamod(scalars, param, grad, exp_avg, exp_avg_sq, exp_avg_lr):
    """AdaMod, csrc/rules/adamod.h."""
    grad_sign = tl.load(scalars + 0)
    beta1 = tl.load(scalars + 1)
    one_minus_beta1 = tl.load(scalars + 2)
    beta2 = tl.load(scalars + 3)
    one_minus_beta2 = tl.load(scalars + 4)
    beta3 = tl.load(scalars + 5)
    one_minus_beta3 = tl.load(scalars + 6)
    eps = tl.load(scalars + 7)
    step_size = tl.load(scalars + 8)
    denom_scale = tl.load(scalars + 9)
    update_scale = tl.load(scalars + 10)
    param_decay = tl.load(scalars + 11)

    grad = grad_sign * grad
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad

    eta = div_rn(step_size, sqrt_rn(exp_avg_sq) * denom_scale + eps)
    exp_avg_lr = beta3 * exp_avg_lr + one_minus_beta3 * eta
    bounded = tl.where(exp_avg_lr < eta, exp_avg_lr, eta)

    param = param * param_decay - bounded * exp_avg * update_scale
    return param, exp_avg, exp_avg_sq, exp_avg_lr


RULES = {"adamod": Rule(adamod, num_states=3)}
