"""Every kernel equals the reference bit for bit: parameters and all states, at every step."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import CASES, DTYPES, SIZES, Case
from helpers import assert_same_bits
from torch import Tensor

from adamod_fused import AdaMod
from adamod_fused.optimizer import KEYWORDS

# Ten steps: the bias corrections move, the bound and the moments leave zero, and a schedule of
# four factors has come round twice.
STEPS = 10

# Offsets of a view in elements: aligned, and off every vector width (its states are aligned).
OFFSETS = (0, 1)


def make_params(dtype: torch.dtype, device: torch.device) -> list[torch.nn.Parameter]:
    """Views of all sizes at all offsets, values from a generator: the same for every kernel."""
    generator = torch.Generator().manual_seed(7)
    params = []
    for size in SIZES:
        for offset in OFFSETS:
            base = torch.randn(size + offset, generator=generator).to(device, dtype)
            params.append(torch.nn.Parameter(base[offset:]))
    return params


@cache
def make_grads(step: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Gradients over eight decades, some zero, some subnormal once squared."""
    generator = torch.Generator().manual_seed(1000 + step)
    grads = []
    for i, size in enumerate(size for size in SIZES for _ in OFFSETS):
        values = torch.randn(size, generator=generator)
        values *= 10.0 ** torch.randint(-6, 3, (size,), generator=generator)
        values *= torch.rand(size, generator=generator) > 0.1
        offset = (i + step) % 2  # gradients are not aligned as their parameters are
        base = torch.empty(size + offset, dtype=dtype, device=device)
        grads.append(base[offset:].copy_(values))
    return grads


def train(case: Case, dtype: torch.dtype, device: torch.device, backend: str) -> list[list[Tensor]]:
    """Parameters and states after each step."""
    params = make_params(dtype, device)
    count = len(case.groups)
    optimizer = AdaMod(
        [{"params": params[i::count], **group} for i, group in enumerate(case.groups)],
        backend=backend,
    )
    history = []
    for step in range(STEPS):
        if case.lr_schedule:
            factor = case.lr_schedule[step % len(case.lr_schedule)]
            for group, initial in zip(optimizer.param_groups, case.groups, strict=True):
                group["lr"] = initial["lr"] * factor
        for param, grad in zip(params, make_grads(step, dtype, device), strict=True):
            param.grad = grad
        optimizer.step()
        tensors = [*params, *(t for p in params for t in optimizer.state[p].values())]
        history.append([tensor.detach().cpu().clone() for tensor in tensors])
    return history


@cache
def expected(case_index: int, dtype: torch.dtype) -> list[list[Tensor]]:
    return train(CASES[case_index], dtype, torch.device("cpu"), "reference")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case_index", range(len(CASES)), ids=[c.description for c in CASES])
def test_kernel_equals_reference(case_index: int, dtype: torch.dtype, kernel) -> None:
    backend, device = kernel
    actual = train(CASES[case_index], dtype, device, backend)
    for step, (got, wanted) in enumerate(zip(actual, expected(case_index, dtype), strict=True)):
        for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert_same_bits(a, b, f"tensor {i} after step {step + 1}")


def test_both_sides_of_the_bound_are_in_the_cases() -> None:
    """Parity would prove little if min(eta, s) always picked the same side."""
    bounded = total = 0
    for case_index, case in enumerate(CASES):
        if len(case.groups) > 1 or case.lr_schedule:
            continue
        options = {**AdaMod([torch.zeros(1)]).defaults, **case.groups[0]}
        options = {k: v for k, v in options.items() if k not in KEYWORDS}
        for step, tensors in enumerate(expected(case_index, torch.float32)):
            scalars = AdaMod.rule.prepare(step + 1, **options)
            states = tensors[len(SIZES) * len(OFFSETS) :]
            for exp_avg_sq, exp_avg_lr in zip(states[2::4], states[3::4], strict=True):
                eta = scalars.step_size / (exp_avg_sq.sqrt() * scalars.denom_scale + scalars.eps)
                bounded += int((exp_avg_lr < eta).sum())
                total += eta.numel()
    assert 0.05 < bounded / total < 0.95
