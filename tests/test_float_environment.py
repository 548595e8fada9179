"""A step has the same bits whatever floating-point environment the caller's thread is in."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import OPTIONS, assert_same_bits, assert_same_training, random_params
from torch import Tensor

from adamod_fused import AdaMod

NUMEL = 140_000  # enough for two threads
UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}  # FE_UPWARD of fenv.h


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormals on this processor")
    try:
        assert float(torch.tensor(1e-310, dtype=torch.float64) * 1) == 0
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounded_upward() -> Iterator[None]:
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    before = libm.fegetround()
    libm.fesetround(UPWARD[platform.machine()])
    try:
        assert 1.0 + float("1e-30") > 1.0
        yield
    finally:
        libm.fesetround(before)


ENVIRONMENTS = {"flush": subnormals_flushed, "upward": rounded_upward}


@contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiny_grads(numel: int, dtype: torch.dtype) -> Tensor:
    """Subnormal in float16, where squares are subnormal in float32 too."""
    grads = torch.randn(numel, generator=torch.Generator().manual_seed(1)) * 1e-6
    grads[::3] *= 1e-14 if dtype is not torch.float16 else 1
    return grads.to(dtype)


def trained(
    environment: Callable[[], object], numel: int, dtype: torch.dtype, clip: bool = False, **how
) -> AdaMod:
    (param,) = random_params((numel,), dtype=dtype)
    optimizer = AdaMod([param], **{**OPTIONS, "eps": 1e-12}, **how)
    param.grad = tiny_grads(numel, dtype)
    for _ in range(2):
        with environment():
            if clip:
                optimizer.clip_grad_norm_(1e-7)
            optimizer.step()
    return optimizer


@contextmanager
def unchanged() -> Iterator[None]:
    yield


@pytest.mark.parametrize("state_format", ["fp32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_threads_of_a_step_compute_alike(
    environment: str, dtype: torch.dtype, state_format: str
) -> None:
    how = {"backend": "cpu", "state_format": state_format}
    with two_threads():
        expected = trained(unchanged, NUMEL, dtype, **how)
        actual = trained(ENVIRONMENTS[environment], NUMEL, dtype, **how)
    assert_same_training(actual, expected)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_small_steps_on_each_backend(
    environment: str, dtype: torch.dtype, clip: bool, backend: str
) -> None:
    """So few elements that torch's operators, too, compute on the calling thread."""
    expected = trained(unchanged, 100, dtype, clip, backend=backend)
    actual = trained(ENVIRONMENTS[environment], 100, dtype, clip, backend=backend)
    assert_same_training(actual, expected)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_callers_environment_is_restored(environment: str) -> None:
    (param,) = random_params((NUMEL,))
    optimizer = AdaMod([param], **OPTIONS, backend="cpu")
    param.grad = torch.ones(NUMEL)
    with ENVIRONMENTS[environment]():
        before = torch.tensor([1e-310, 1.0], dtype=torch.float64) + 1e-30
        optimizer.step()
        after = torch.tensor([1e-310, 1.0], dtype=torch.float64) + 1e-30
    assert_same_bits(after, before)


def test_a_look_at_the_bound_and_the_sum_of_squares() -> None:
    found = {}
    for name, environment in {"none": unchanged, **ENVIRONMENTS}.items():
        (param,) = random_params((NUMEL,), dtype=torch.float16)
        optimizer = AdaMod([param], **OPTIONS, backend="cpu", track_bound=1)
        param.grad = tiny_grads(NUMEL, torch.float16)
        with two_threads(), environment():
            norm = optimizer.clip_grad_norm_(1.0)
            optimizer.step()
        found[name] = norm.item(), optimizer.bound_stats()
    assert found["flush"] == found["upward"] == found["none"]
