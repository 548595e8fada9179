"""The rules in Triton, line for line csrc/rules: what one element does in one step.

A rule gets the address of its row of scalars (float32, in the order of ``Scalars``, whose last two
are ``weight_decay_rate`` and ``step``), the grad and three states in float32, and returns its
update and the new states; a state beyond its ``num_states`` is a placeholder to hand back. The
engine gives the update to ``apply_update``, which writes the param of any rule. To be observed a
rule gets the states that the step left, and returns the four numbers of csrc/rules/observation.h.
It takes square root and division from ``ieee``: Triton's plain ones are approximations on a GPU.

To prepare its scalars a rule gets a vector of rows' addresses, their steps in int64 (the first is
1) and eight hyperparameters in float64, in the order of ``Hyperparameters`` and then placeholders.
Of float64 Triton's plain root and division round once; the stores round to float32.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .codes import OF_BOTH_SIGNS, SAFE_TOO_LARGE, SAFE_TOO_SMALL
from .ieee import div_rn, sqrt_rn
from .integer_power import integer_power


class Rule(NamedTuple):
    """What the engine knows of a rule."""

    update: triton.JITFunction
    prepare: triton.JITFunction
    observe: triton.JITFunction
    num_states: int
    values: tuple[tl.constexpr, ...] = ()
    """Of each state, for formats of few bits; a rule that does not say has none of them."""


@triton.jit
def apply_update(weight_decay_rate, param, update):
    """The new param: weight decay and the update taken off, csrc/rules/step_element.h."""
    decayed = weight_decay_rate * param + update
    return param - tl.where(weight_decay_rate != 0, decayed, update)


@triton.jit
def adamod(scalars, grad, exp_avg, exp_avg_sq, exp_avg_lr):
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

    grad = grad_sign * grad
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad

    eta = adaptive_rate(step_size, denom_scale, eps, exp_avg_sq)
    exp_avg_lr = beta3 * exp_avg_lr + one_minus_beta3 * eta
    bounded = tl.where(exp_avg_lr < eta, exp_avg_lr, eta)

    return bounded * exp_avg * update_scale, exp_avg, exp_avg_sq, exp_avg_lr


@triton.jit
def adaptive_rate(step_size, denom_scale, eps, exp_avg_sq):
    """Adam's learning rate of every element, eta."""
    return div_rn(step_size, sqrt_rn(exp_avg_sq) * denom_scale + eps)


@triton.jit
def observe_adamod(scalars, exp_avg, exp_avg_sq, exp_avg_lr):
    """What a step of AdaMod did, from the states that it left, csrc/rules/adamod.h."""
    eps = tl.load(scalars + 7)
    step_size = tl.load(scalars + 8)
    denom_scale = tl.load(scalars + 9)
    update_scale = tl.load(scalars + 10)

    eta = adaptive_rate(step_size, denom_scale, eps, exp_avg_sq)
    bounded = tl.where(exp_avg_lr < eta, exp_avg_lr, eta)
    return eta, bounded, bounded * exp_avg * update_scale, exp_avg_sq


@triton.jit
def prepare_adamod(scalars, step, lr, beta1, beta2, beta3, eps, weight_decay, maximize, released):
    """The scalars of a step of AdaMod, csrc/rules/adamod.h."""
    bias_correction1 = 1 - integer_power(beta1, step)
    bias_correction2 = 1 - integer_power(beta2, step)
    root = tl.sqrt(bias_correction2)
    is_released = released != 0
    step_size = tl.where(is_released, lr * root / bias_correction1, lr)
    denom_scale = tl.where(is_released, 1, 1 / root)
    update_scale = tl.where(is_released, 1, 1 / bias_correction1)

    tl.store(scalars + 0, tl.where(maximize != 0, -1, 1))  # grad_sign
    tl.store(scalars + 1, beta1)
    tl.store(scalars + 2, 1 - beta1)
    tl.store(scalars + 3, beta2)
    tl.store(scalars + 4, 1 - beta2)
    tl.store(scalars + 5, beta3)
    tl.store(scalars + 6, 1 - beta3)
    tl.store(scalars + 7, eps)
    tl.store(scalars + 8, step_size)
    tl.store(scalars + 9, denom_scale)
    tl.store(scalars + 10, update_scale)
    tl.store(scalars + 11, lr * weight_decay)  # weight_decay_rate
    tl.store(scalars + 12, step)


RULES = {
    "adamod": Rule(
        adamod,
        prepare_adamod,
        observe_adamod,
        num_states=3,
        values=(OF_BOTH_SIGNS, SAFE_TOO_LARGE, SAFE_TOO_SMALL),
    )
}
