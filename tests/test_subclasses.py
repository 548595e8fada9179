"""Subclasses of Tensor: kernels step those whose elements lie at their address, and no others.

DTensors, which kernels step by their local tensors, have a folder of their own, tests/distributed.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    STATES,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
    train,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adamod_fused import AdaMod, backends

SHAPES = ((4, 3), (5,), (2, 6))  # the one in the middle stays a plain tensor


class Named(Tensor):
    """A plain subclass: it overrides nothing of how operators see its memory."""


class Wrapper(Tensor):
    """Has its elements in another tensor, as quantized and distributed tensors do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrap(item: Any) -> Any:
            return item.inner if isinstance(item, Wrapper) else item

        result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.add_.Tensor):
            return args[0]
        return tree_map(lambda item: cls(item) if isinstance(item, Tensor) else item, result)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("grads_too", [False, True])
@pytest.mark.parametrize("backend", ["cpu", None])
def test_the_cpu_backend_serves_a_plain_subclass(backend: str | None, grads_too: bool) -> None:
    params = [nn.Parameter(param.detach().as_subclass(Named)) for param in random_params(*SHAPES)]
    assert {type(param) for param in params} == {Named}
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    expected = AdaMod(random_params(*SHAPES), **OPTIONS, backend="reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fallback to the reference would warn
        for step in range(3):
            set_random_grads(params, step)
            if grads_too:
                for param in params:
                    param.grad = param.grad.as_subclass(Named)
            optimizer.step()
    train(expected, range(3))
    assert_same_training(optimizer, expected)


def make_wrapped(backend: str | None) -> AdaMod:
    first, plain, last = random_params(*SHAPES)
    wrap = [nn.Parameter(Wrapper(param.detach())) for param in (first, last)]
    return AdaMod([wrap[0], plain, wrap[1]], **OPTIONS, backend=backend)


def train_wrapped(optimizer: AdaMod) -> None:
    twins = random_params(*SHAPES)
    for step in range(3):
        set_random_grads(twins, step)
        for param, twin in zip(params_of(optimizer), twins, strict=True):
            param.grad = Wrapper(twin.grad) if isinstance(param, Wrapper) else twin.grad
        optimizer.step()


def contents(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, Wrapper) else tensor


def test_the_reference_steps_other_subclasses_after_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    optimizer = make_wrapped(None)
    with pytest.warns(UserWarning, match="slow pure-PyTorch reference") as caught:
        train_wrapped(optimizer)
    (warning,) = caught
    assert "cpu: kernels read plain tensors, not Wrapper" in str(warning.message)
    expected = AdaMod(random_params(*SHAPES), **OPTIONS, backend="reference")
    train(expected, range(3))
    for param, twin in zip(params_of(optimizer), params_of(expected), strict=True):
        assert_same_bits(contents(param), twin)
        assert list(optimizer.state[param]) == ["step", *STATES]
        for name, state in expected.state[twin].items():
            assert_same_bits(contents(optimizer.state[param][name]), state, name)


def test_a_backend_asked_for_other_subclasses_refuses_them_and_changes_nothing() -> None:
    optimizer = make_wrapped("cpu")
    with pytest.raises(ValueError, match=r"backend .cpu. cannot .* not Wrapper; backend=None"):
        train_wrapped(optimizer)
    assert not optimizer.state
    for param, twin in zip(params_of(optimizer), random_params(*SHAPES), strict=True):
        assert_same_bits(contents(param), twin)
