"""The rules in pure PyTorch: the oracle that every kernel must equal bit for bit.

Run on float64 tensors a rule is the yardstick of accuracy; run on float32, bfloat16 or float16
tensors it is the twin of the kernels: each operation rounds once, in the kernels' order. Nothing
here is fused, blocked or clever, on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import codes
from .codes import Values

COMPUTE_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
"""The dtype that a step computes in and keeps states in, for each dtype of parameter served."""


def integer_power(base: float, exponent: int) -> float:
    """``base ** exponent`` by square and multiply: the same bits wherever float64 is IEEE."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def correctly_rounded_sqrt(x: Tensor) -> Tensor:
    """Square root rounded to nearest, which ``torch.sqrt`` on a CPU is not.

    Through float64, whose error is too small to move a float32 result: the square root of a
    24-bit number is never that close to a midpoint between two of them.
    """
    return x.double().sqrt().to(x.dtype)


SEGMENT_SIZE, SEGMENT_LANES = 16384, 1024  # csrc/engine/row.h


def sum_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all elements, float64 and 0-dim, in the kernels' order.

    Segments of each tensor's memory, its lanes, then the segments of all tensors are added up as
    csrc/engine/row.h says: the same bits on every backend.
    """
    segments = [
        sum_in_lanes(_in_rows(tensor.flatten().double().square(), SEGMENT_SIZE), SEGMENT_LANES)
        for tensor in tensors
        if tensor.numel() > 0
    ]
    if not segments:
        device = tensors[0].device if tensors else "cpu"
        return torch.zeros((), dtype=torch.float64, device=device)
    sums = torch.cat(segments)
    whole = -(-len(sums) // SEGMENT_LANES) * SEGMENT_LANES
    return sum_in_lanes(_in_rows(sums, whole), SEGMENT_LANES)[0]


def _in_rows(values: Tensor, size: int) -> Tensor:
    """``values`` in rows of ``size``, zeros at the end."""
    return torch.nn.functional.pad(values, (0, -len(values) % size)).view(-1, size)


def sum_in_lanes(rows: Tensor, lanes: int) -> Tensor:
    """The sum of each row: every ``lanes``-th element one by one, then the lanes by halves."""
    sums = rows.new_zeros(len(rows), lanes)
    for turn in rows.view(len(rows), rows.shape[1] // lanes, lanes).unbind(1):
        sums = sums + turn
    while sums.shape[1] > 1:
        lower, upper = sums.chunk(2, dim=1)
        sums = lower + upper
    return sums[:, 0]


class Coded(NamedTuple):
    """What a step of coded states or weights needs beside them; csrc/engine/row.h."""

    exponents: Tensor | None
    """uint8 ``[blocks, states]``; None where the states are float32."""
    remainders: Tensor | None
    """int16 ``[numel]``; None where the weight format keeps none."""
    first_index: int
    key: int
    rounds_at_random: bool
    """Whether weights are rounded stochastically."""


def stepped(rule: Any, scalars: Any, param: Tensor, grad: Tensor, *states: Tensor) -> list[Tensor]:
    """One step of any rule on tensors of one dtype and shape: the new param and the new states.

    As csrc/rules/step_element.h: a rule computes its states and the update, and weight decay takes
    ``weight_decay_rate`` of the param off in one sum with the update.
    """
    update, *new_states = rule.update(scalars, grad, *states)
    exact = torch.tensor(scalars.weight_decay_rate, dtype=torch.float64, device="cpu")
    rate = exact.to(param.dtype).item()  # rounded first: kernels find 0 where this does
    return [param - (rate * param + update if rate != 0 else update), *new_states]


def step_(
    rule: Any,
    scalars: Any,
    param: Tensor,
    grad: Tensor,
    states: Sequence[Tensor],
    grad_scale: float = 1.0,
    coded: Coded | None = None,
) -> None:
    """One step of ``rule`` in place: widen, update, round once to what is stored.

    ``grad_scale`` is a float32 number: what the gradient is multiplied by first. With ``coded``
    all tensors have one dimension, the order of elements in memory.
    """
    dtype = COMPUTE_DTYPES[param.dtype]
    grad = grad.to(dtype) * grad_scale
    if coded is None:
        updated = stepped(rule, scalars, param.to(dtype), grad, *states)
        for tensor, new in zip((param, *states), updated, strict=True):
            tensor.copy_(new)
        return
    exponents, remainders = coded.exponents, coded.remainders
    weight = param.to(dtype) if remainders is None else codes.joined(param, remainders)
    values = states if exponents is None else codes.decode(rule.values, states, exponents)
    weight, *values = stepped(rule, scalars, weight, grad, *values)

    step = int(torch.tensor(scalars.step, dtype=torch.float32, device="cpu"))  # as kernels have it
    indices = torch.arange(len(param), device=param.device) + coded.first_index

    def random(stream: int) -> Tensor:
        return codes.random_bits(indices, coded.key, step, stream)

    if exponents is not None:
        bits = [random(stream) for stream in range(len(values))]
        values, found = codes.encode(rule.values, states[0].dtype.itemsize, values, bits)
        exponents.copy_(found)
    for state, new in zip(states, values, strict=True):
        state.copy_(new)
    if remainders is not None:
        weight, lower = codes.split(weight)
        remainders.copy_(lower)
    elif coded.rounds_at_random:
        weight = codes.stochastically_rounded(weight, random(codes.PARAM_STREAM))
    param.copy_(weight)


class Observation(NamedTuple):
    """What a rule tells of each element to whoever watches a step, as in csrc."""

    rate: Tensor
    """The element's own learning rate."""
    bounded_rate: Tensor
    """What the rule made of it."""
    update: Tensor
    """What the step took off the parameter, weight decay apart."""
    activity: Tensor
    """0 where the element has never had a gradient."""


class AdaMod:
    """AdaMod, Ding et al., arXiv 1910.12249, algorithm 1, and the form its authors released.

    The two variants differ in where the bias corrections sit, so one update serves both::

        paper:     eta = lr / (sqrt(v / bc2) + eps)                   p -= min(eta, s) * m / bc1
        released:  eta = lr * sqrt(bc2) / bc1 / (sqrt(v) + eps)       p -= min(eta, s) * m

    where ``bc1 = 1 - beta1^t`` and ``bc2 = 1 - beta2^t``.
    """

    name = "adamod"
    states = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
    values = (Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE, Values.SAFE_TOO_SMALL)

    class Scalars(NamedTuple):
        """One row of ready-made scalars, float64; field for field ``AdaMod::Scalars`` in csrc."""

        grad_sign: float
        beta1: float
        one_minus_beta1: float
        beta2: float
        one_minus_beta2: float
        beta3: float
        one_minus_beta3: float
        eps: float
        step_size: float
        denom_scale: float
        update_scale: float
        weight_decay_rate: float
        step: float

    @staticmethod
    def hyperparameters(
        *,
        lr: Any,
        betas: tuple[Any, Any],
        beta3: Any,
        eps: Any,
        weight_decay: Any,
        variant: str,
        maximize: bool,
    ) -> tuple[Any, ...]:
        """The arguments of ``prepare``, numbers or 0-dim tensors, as csrc's ``Hyperparameters``."""
        released = variant == "released"
        return (lr, *betas, beta3, eps, weight_decay, float(maximize), float(released))

    @classmethod
    def prepare(
        cls,
        step: int,
        *,
        lr: float,
        betas: tuple[float, float],
        beta3: float,
        eps: float,
        weight_decay: float,
        variant: str,
        maximize: bool,
    ) -> Scalars:
        """The scalars of step ``step`` (the first is 1), computed in float64."""
        beta1, beta2 = betas
        bias_correction1 = 1 - integer_power(beta1, step)
        bias_correction2 = 1 - integer_power(beta2, step)
        if variant == "paper":
            step_size = lr
            denom_scale = 1 / math.sqrt(bias_correction2)
            update_scale = 1 / bias_correction1
        else:
            step_size = lr * math.sqrt(bias_correction2) / bias_correction1
            denom_scale = update_scale = 1.0
        return cls.Scalars(
            grad_sign=-1.0 if maximize else 1.0,
            beta1=beta1,
            one_minus_beta1=1 - beta1,
            beta2=beta2,
            one_minus_beta2=1 - beta2,
            beta3=beta3,
            one_minus_beta3=1 - beta3,
            eps=eps,
            step_size=step_size,
            denom_scale=denom_scale,
            update_scale=update_scale,
            weight_decay_rate=lr * weight_decay,
            step=float(step),
        )

    @staticmethod
    def adaptive_rate(s: Scalars, exp_avg_sq: Tensor) -> Tensor:
        """Adam's learning rate of every element, eta: what the bound averages."""
        # A tensor on top: `number / tensor` would multiply by a reciprocal, two roundings.
        step_size = torch.tensor(s.step_size, dtype=torch.float64, device="cpu").to(
            exp_avg_sq.dtype
        )
        return step_size / (correctly_rounded_sqrt(exp_avg_sq) * s.denom_scale + s.eps)

    @staticmethod
    def update(
        s: Scalars,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        exp_avg_lr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the step takes off the param, weight decay apart, and the new states."""
        grad = s.grad_sign * grad
        exp_avg = s.beta1 * exp_avg + s.one_minus_beta1 * grad
        exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad

        eta = AdaMod.adaptive_rate(s, exp_avg_sq)
        exp_avg_lr = s.beta3 * exp_avg_lr + s.one_minus_beta3 * eta
        bounded = AdaMod.bounded_rate(eta, exp_avg_lr)

        return bounded * exp_avg * s.update_scale, exp_avg, exp_avg_sq, exp_avg_lr

    @staticmethod
    def bounded_rate(eta: Tensor, exp_avg_lr: Tensor) -> Tensor:
        """The learning rate that the step uses: the smaller of eta and its own average."""
        return torch.where(exp_avg_lr < eta, exp_avg_lr, eta)

    @staticmethod
    def observe(s: Scalars, exp_avg: Tensor, exp_avg_sq: Tensor, exp_avg_lr: Tensor) -> Observation:
        """What a step did, from the states that it left."""
        eta = AdaMod.adaptive_rate(s, exp_avg_sq)
        rate = AdaMod.bounded_rate(eta, exp_avg_lr)
        return Observation(eta, rate, rate * exp_avg * s.update_scale, exp_avg_sq)
