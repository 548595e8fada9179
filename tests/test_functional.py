"""functional.adamod is the class for people who own their loop: the same bits, in their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import OPTIONS, STATES, assert_same_bits, params_of, random_params, set_random_grads
from torch import Tensor

from adamod_fused import AdaMod, functional

SHAPES = ((3, 4), (), (7,), (0,), (2, 3, 4, 5))
COMPUTE_DTYPE = {torch.float64: torch.float64}


def in_reversed_order(values: Tensor) -> Tensor:
    order = tuple(reversed(range(values.ndim)))
    return values.permute(order).clone(memory_format=torch.contiguous_format).permute(order)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "reversed": in_reversed_order,
    "gaps": lambda x: torch.stack([x, x + 1], dim=-1)[..., 0],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def as_arguments(options: dict[str, Any]) -> dict[str, Any]:
    beta1, beta2 = options["betas"]
    rest = {name: value for name, value in options.items() if name != "betas"}
    return {**rest, "beta1": beta1, "beta2": beta2}


def lay_out(tensors: list[Tensor], layout: str) -> list[Tensor]:
    return [LAYOUTS[layout](tensor.detach()) for tensor in tensors]


def check_equal_to_class(
    dtype: torch.dtype, backend: str, param_layout: str, grad_layout: str, state_layout: str
) -> None:
    optimizer = AdaMod(random_params(*SHAPES, dtype=dtype), **OPTIONS, backend="reference")
    owned = params_of(optimizer)
    params = lay_out(owned, param_layout)
    zeros = [torch.zeros_like(p, dtype=COMPUTE_DTYPE.get(dtype, torch.float32)) for p in owned]
    states = {name: lay_out(zeros, state_layout) for name in STATES}
    steps = [torch.zeros(()) for _ in owned]
    passed = [*params, *steps, *(tensor for name in STATES for tensor in states[name])]
    places = [(tensor.data_ptr(), tensor.stride()) for tensor in passed]
    for step in range(4):
        set_random_grads(owned, step)
        grads = lay_out([param.grad for param in owned], grad_layout)
        before = [grad.clone() for grad in grads]
        optimizer.step()
        functional.adamod(
            params, grads, *states.values(), steps, **as_arguments(OPTIONS), backend=backend
        )
        for grad, old in zip(grads, before, strict=True):
            assert_same_bits(grad, old, "a gradient")
    for i, param in enumerate(owned):
        assert_same_bits(params[i], param, f"parameter {i}")
        assert_same_bits(steps[i], optimizer.state[param]["step"], f"step {i}")
        for name in STATES:
            assert_same_bits(states[name][i], optimizer.state[param][name], f"{name} {i}")
    assert [(tensor.data_ptr(), tensor.stride()) for tensor in passed] == places


@pytest.mark.parametrize("state_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", LAYOUTS)
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
def test_equals_the_class_in_the_tensors_of_the_caller(
    param_layout: str, state_layout: str, backend: str | None
) -> None:
    for grad_layout in LAYOUTS:
        check_equal_to_class(torch.float32, backend, param_layout, grad_layout, state_layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_equals_the_class_in_half_precision(dtype: torch.dtype) -> None:
    check_equal_to_class(dtype, "cpu", "reversed", "gaps", "contiguous")


def test_float64_equals_the_class_on_one_backend() -> None:
    optimizer = AdaMod(random_params((5,), dtype=torch.float64), **OPTIONS, backend="cpu")
    (owned,) = params_of(optimizer)
    param = owned.detach().clone()
    states, step = [torch.zeros(5, dtype=torch.float64) for _ in STATES], torch.zeros(())
    for i in range(3):
        set_random_grads([owned], i)
        optimizer.step()
        functional.adamod(
            [param], [owned.grad], *([s] for s in states), [step], **as_arguments(OPTIONS)
        )
    assert_same_bits(param, owned)


@pytest.mark.parametrize("name", ["variant", "maximize"])
def test_optional_arguments_default_to_those_of_the_class(name: str) -> None:
    options = {key: value for key, value in OPTIONS.items() if key != name}
    (owned,), (param,) = random_params((5,)), random_params((5,))
    set_random_grads([owned], 0)
    AdaMod([owned], **options).step()
    states = [[torch.zeros(5)] for _ in STATES]
    functional.adamod([param], [owned.grad], *states, [torch.zeros(())], **as_arguments(options))
    assert_same_bits(param, owned)


def test_each_tensor_counts_its_own_steps() -> None:
    alone, together = random_params((4,), (4,)), random_params((4,), (4,))
    steps = [torch.tensor(0.0), torch.tensor(9.0)]
    grads = [torch.full((4,), 0.5), torch.full((4,), -2.0)]
    states = [[torch.full((4,), 0.01) for _ in alone] for _ in STATES]
    functional.adamod(
        together,
        grads,
        *([tensor.clone() for tensor in state] for state in states),
        [step.clone() for step in steps],
        **as_arguments(OPTIONS),
    )
    for i, param in enumerate(alone):
        functional.adamod(
            [param],
            [grads[i]],
            *([state[i].clone()] for state in states),
            [steps[i]],
            **as_arguments(OPTIONS),
        )
        assert_same_bits(together[i], param)
    assert [step.item() for step in steps] == [1.0, 10.0]


@pytest.mark.parametrize("name", ["lr", "beta1", "beta2", "beta3", "eps", "weight_decay"])
def test_hyperparameters_may_be_tensors(name: str) -> None:
    options = as_arguments(OPTIONS)
    number = torch.tensor(options[name]).item()  # as float32 has it
    results = []
    for value in (number, torch.tensor(number)):
        (param,) = random_params((33,))
        states = [[torch.full((33,), 1e-3)] for _ in STATES]
        arguments = {**options, name: value}
        functional.adamod(
            [param], [param.detach().clone()], *states, [torch.tensor(2.0)], **arguments
        )
        results.append([param, *(tensor for state in states for tensor in state)])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_parameters_may_require_gradients_and_autograd_learns_of_the_step() -> None:
    (param,) = random_params((4,))
    loss = param.pow(2).sum()
    loss.backward(retain_graph=True)
    states = [[torch.zeros(4)] for _ in STATES]
    functional.adamod([param], [param.grad], *states, [torch.zeros(())], **as_arguments(OPTIONS))
    assert param.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_tensors() -> None:
    functional.adamod([], [], [], [], [], [], **as_arguments(OPTIONS))
