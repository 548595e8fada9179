"""Steps inside of ``torch.inference_mode`` and outside, of tensors made in either."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import STATES, Snapshot, assert_same_bits, assert_same_training, random_params
from helpers import set_random_grads as set_grads
from torch import Tensor, nn

from adamod_fused import AdaMod, functional

CODED = {"state_format": "8bit", "weight_format": "split", "min_coded_numel": 0}
WHO = "parameter 1 of group 0"


def made_in_inference_mode(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def mixed_params() -> list[nn.Parameter]:
    good, bad = random_params((5,), (5,))
    with torch.inference_mode():
        return [good, nn.Parameter(bad.clone())]


@pytest.mark.usefixtures("reader")
def test_an_inference_parameter_is_refused_before_anything_is_written(backend: str) -> None:
    optimizer = AdaMod(mixed_params(), backend=backend)
    set_grads(optimizer.param_groups[0]["params"], 0)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=rf"{WHO} is an inference tensor: .*clone\(\)"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.usefixtures("reader")
def test_a_plan_made_inside_does_not_write_outside(backend: str) -> None:
    optimizer = AdaMod(mixed_params(), backend=backend)
    with torch.inference_mode():
        for seed in range(2):
            set_grads(optimizer.param_groups[0]["params"], seed)
            optimizer.step()
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"{WHO} is an inference tensor"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", ["step", *STATES, "block_exponents", "param_remainder"])
def test_a_state_that_becomes_an_inference_tensor_is_refused(name: str, backend: str) -> None:
    params = random_params((5,), (5,), dtype=torch.bfloat16)
    optimizer = AdaMod(params, backend=backend, **CODED)
    set_grads(params, 0)
    optimizer.step()
    states = optimizer.state[params[1]]
    states[name] = made_in_inference_mode(states[name])
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"{name} of {WHO} is an inference tensor"):
        optimizer.step()
    before.assert_unchanged()


def test_the_function_refuses_an_inference_tensor(backend: str) -> None:
    params = mixed_params()
    set_grads(params, 0)
    states = [[torch.zeros(5), torch.zeros(5)] for _ in STATES]
    steps = [torch.zeros(()), torch.zeros(())]
    before = params[0].detach().clone()
    rates = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "beta3": 0.9, "eps": 1e-8, "weight_decay": 0.0}
    with pytest.raises(RuntimeError, match=f"{WHO} is an inference tensor"):
        functional.adamod(
            params, [p.grad for p in params], *states, steps, **rates, backend=backend
        )
    assert_same_bits(params[0], before)
    assert steps[0] == 0


@pytest.mark.parametrize("options", [{}, CODED], ids=["plain", "coded"])
def test_states_made_inside_go_on_outside(options: dict[str, object], backend: str) -> None:
    def train(enter: Callable[[], torch.inference_mode]) -> AdaMod:
        params = random_params((5,), (2, 3), dtype=torch.bfloat16)
        optimizer = AdaMod(params, backend=backend, **options)
        set_grads(params, 0)
        with enter():
            optimizer.step()
        set_grads(params, 1)
        optimizer.step()
        return optimizer

    inside, outside = train(torch.inference_mode), train(lambda: torch.inference_mode(False))
    assert_same_training(inside, outside)
