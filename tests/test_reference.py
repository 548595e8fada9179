"""The oracle itself: against other implementations, and against itself in float64."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from adamod_fused import AdaMod
from adamod_fused.reference import AdaMod as Rule
from adamod_fused.reference import correctly_rounded_sqrt, integer_power, step_

STEPS = 50
OPTIONS = {
    "lr": 3e-3,
    "betas": (0.8, 0.97),
    "beta3": 0.99,
    "eps": 1e-6,
    "weight_decay": 0.1,
    "variant": "paper",
    "maximize": False,
}


def make_grads(steps: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    scale = 10.0 ** torch.randint(-4, 2, (size,), generator=generator)
    return [(torch.randn(size, generator=generator) * scale).to(dtype) for _ in range(steps)]


def run(dtype: torch.dtype, grads: list[torch.Tensor], **options) -> list[torch.Tensor]:
    """Parameters and states after all steps, starting from the same float32 values."""
    param = torch.randn(grads[0].numel(), generator=torch.Generator().manual_seed(4)).to(dtype)
    states = [torch.zeros_like(param) for _ in Rule.states]
    for step, grad in enumerate(grads, start=1):
        step_(Rule, Rule.prepare(step, **{**OPTIONS, **options}), param, grad.to(dtype), states)
    return [param, *states]


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("beta3", [0.9, 0.999])
def test_float32_stays_within_its_derived_bound_of_float64(variant: str, beta3: float) -> None:
    """An average x = b*x + w*y rounds five times a step (b, w, two products, one sum).

    Each rounding is at most u = 2^-24 of what it rounds, and the average forgets: after t steps
    it holds about n = min(t, 1/(1-b)) of them, so |error| <= 5 n u A where A is the same average
    of |y|, plus the error that y itself came with, which passes through unchanged. Second-order
    terms in u are covered by one part in a thousand.

    - exp_avg: y = g exactly, A the average of |g|.
    - exp_avg_sq: y = g^2 with one more rounding, A = exp_avg_sq.
    - eta: half the relative error of exp_avg_sq, and seven roundings of its own (root, scale,
      product, eps, sum, quotient, numerator).
    - exp_avg_lr: the error of eta passes through, then its own average's.
    - update: takes over the errors of bounded and exp_avg, with three more roundings.
    - param: each step rounds once at |param|. What it takes off, weight decay and update, rounds
      once as a sum, and the decay twice before (its rate, the product).
    """
    u, slack = 2.0**-24, 1.001
    size, (beta1, beta2) = 20_000, OPTIONS["betas"]
    grads = make_grads(STEPS, size, torch.float32)
    options = {**OPTIONS, "variant": variant, "beta3": beta3}

    def roundings(beta: float, step: int) -> float:
        return 5 * min(step, 1 / (1 - beta))

    exact = [torch.randn(size, generator=torch.Generator().manual_seed(4)).double()]
    exact += [torch.zeros(size, dtype=torch.float64) for _ in Rule.states]
    single = [tensor.float() for tensor in exact]
    mean_abs_grad = torch.zeros(size, dtype=torch.float64)
    param_error = torch.zeros(size, dtype=torch.float64)
    for step, grad in enumerate(grads, start=1):
        scalars = Rule.prepare(step, **options)
        decay = scalars.weight_decay_rate * exact[0].abs()
        step_(Rule, scalars, exact[0], grad.double(), exact[1:])
        step_(Rule, scalars, single[0], grad, single[1:])
        mean_abs_grad = beta1 * mean_abs_grad + (1 - beta1) * grad.double().abs()

        exp_avg_error = roundings(beta1, step) * u * mean_abs_grad
        sq_relative = (roundings(beta2, step) + 1) * u
        eta_relative = sq_relative / 2 + 7 * u
        lr_relative = eta_relative + roundings(beta3, step) * u
        eta = scalars.step_size / (exact[2].sqrt() * scalars.denom_scale + scalars.eps)
        bounded = torch.minimum(eta, exact[3])
        update = bounded * scalars.update_scale
        param_error = (
            param_error
            + u * exact[0].abs()
            + 3 * u * decay
            + update * (exp_avg_error + exact[1].abs() * (lr_relative + 4 * u))
        )

        tiny = 2.0**-126  # below it spacing no longer shrinks with the value
        bounds = [
            param_error,
            exp_avg_error,
            sq_relative * exact[2] + tiny,
            lr_relative * exact[3],
        ]
        for name, a, b, bound in zip(("param", *Rule.states), single, exact, bounds, strict=True):
            error = (a.double() - b).abs()
            assert (error <= slack * bound + tiny).all(), f"{name} at step {step}"


def test_without_bound_the_paper_variant_is_adamw() -> None:
    grads = make_grads(STEPS, 5000, torch.float64)
    ours, theirs = (
        torch.nn.Parameter(torch.linspace(-2, 2, 5000, dtype=torch.float64)) for _ in range(2)
    )
    common = {"lr": 1e-2, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.1}
    adamod = AdaMod([ours], beta3=0.0, backend="reference", **common)
    adamw = torch.optim.AdamW([theirs], **common)
    for grad in grads:
        ours.grad, theirs.grad = grad, grad
        adamod.step()
        adamw.step()
    # Both are rounded in float64, some ten times a step and each at most 2^-53 of values below 4.
    assert (ours - theirs).abs().max() < STEPS * 10 * 4 * 2.0**-53


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_released_variant_is_pytorch_optimizers(weight_decay: float) -> None:
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    grads = make_grads(STEPS, 5000, torch.float64)
    start = torch.linspace(-2, 2, 5000, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    common = {"lr": 1e-2, "eps": 1e-6, "weight_decay": weight_decay}
    adamod = AdaMod(
        [ours], betas=(0.9, 0.999), beta3=0.999, variant="released", backend="reference", **common
    )
    peer = pytorch_optimizer.AdaMod([theirs], betas=(0.9, 0.999, 0.999), **common)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        adamod.step()
        peer.step()
    assert (ours - theirs).abs().max() < STEPS * 20 * 4 * 2.0**-53


def test_the_variants_differ_as_the_derivation_says() -> None:
    """With a constant gradient the bound is at work from the first step on.

    Then s_t = (1 - beta3) * sum of beta3^(t-i) * eta_i, where eta_i = lr / |g| in the paper's form
    and lr / |g| / (1 - beta1^i) in the released one, whose update lacks the 1 / (1 - beta1^t)
    on m_t = (1 - beta1^t) * g. The ratio of the two updates follows in closed form.
    """
    beta1, beta3, steps = 0.9, 0.999, 10
    grads = [torch.ones(1, dtype=torch.float64)] * steps
    common = {"betas": (beta1, 0.999), "beta3": beta3, "eps": 0.0, "weight_decay": 0.0}
    last = []
    for variant in ("paper", "released"):
        before = run(torch.float64, grads[:-1], variant=variant, **common)[0]
        last.append((before - run(torch.float64, grads, variant=variant, **common)[0]).item())
    weights = [beta3 ** (steps - i) for i in range(1, steps + 1)]
    rates = [1 / (1 - beta1**i) for i in range(1, steps + 1)]
    s_ratio = sum(w * r for w, r in zip(weights, rates, strict=True)) / sum(weights)
    expected = s_ratio * (1 - beta1**steps)
    assert math.isclose(last[1] / last[0], expected, rel_tol=1e-9)


def test_integer_power_is_near_the_exact_one() -> None:
    for base in (0.0, 0.9, 0.999, 0.9999999):
        for exponent in (1, 2, 3, 10, 1000, 123_457):
            with mpmath.workdps(60):
                exact = mpmath.mpf(base) ** exponent
                # The k-th square carries 2^k - 1 roundings, so all factors together n; the
                # products that join them at most log2(n), so 2 n covers both.
                bound = 2 * exponent * 2.0**-53 * exact + 2.0**-1074
                assert abs(integer_power(base, exponent) - exact) <= bound


def test_square_root_is_correctly_rounded() -> None:
    """Every float32 in [1, 4) of a stride, which covers all fractions and both parities."""
    bits = torch.arange(0x3F800000, 0x40800000, 97, dtype=torch.int32)
    x = bits.view(torch.float32)
    root = correctly_rounded_sqrt(x).double()
    ulp = torch.where(root < 1, 2.0**-24, 2.0**-23).double()
    exact_x = x.double()
    # Nearest: x lies between the squares of the midpoints beside the root; products of 25-bit
    # numbers are exact in float64.
    assert ((root - ulp / 2) ** 2 <= exact_x).all()
    assert (exact_x <= (root + ulp / 2) ** 2).all()


def test_scalars_are_computed_in_float64() -> None:
    scalars = Rule.prepare(1, **{**OPTIONS, "beta3": 0.9999})
    assert scalars.one_minus_beta3 == 1 - 0.9999
    in_float32 = 1 - torch.tensor(0.9999).item()
    assert abs(in_float32 / scalars.one_minus_beta3 - 1) > 1e-4


def test_reference_serves_float64_on_its_own() -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = AdaMod([param], backend="reference", lr=0.1)
    param.grad = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    optimizer.step()
    assert all(optimizer.state[param][name].dtype == torch.float64 for name in AdaMod.rule.states)
