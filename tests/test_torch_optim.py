"""The generic checks of torch's test/test_optim.py on AdaMod: training, groups, hooks, errors.

torch ships the database of optimizers but not that file, so its checks stand here and in
test_torch_optim_state_dict.py in a short form, over the database's entry in torch_database.py.
Where torch compares within a tolerance, here it is bit for bit.

Run, on the CPU and on a GPU where there is one:
    no flags of implementations in the inputs; errors; the right direction (contiguous or not, with
    and without schedulers, with groups); a tensor lr; a group's own lr and weight_decay; steps
    without gradients and with zero ones; printing; foreach and fused against the reference with a
    zero-size last parameter, a frozen layer and steps without gradients; parameters on meta with
    fused; mixed dtypes; the default dtype; step hooks; a state for every parameter.
In test_torch_optim_state_dict.py:
    determinism; older and named state dicts; torch.save with weights_only; steps that are numbers;
    hooks of state_dict and load_state_dict; deepcopy and pickle; a checkpoint from the CPU on a
    GPU.
Not applicable:
    complex parameters and sparse gradients (refused, with errors that are tested); differentiable
    (refused); closures that return several types (second-order optimizers);
    defaults_changed_to_foreach and peak_memory_foreach (there is no foreach implementation);
    foreach's error for a Tensor lr without capturable (here it works).
Elsewhere:
    the gradient scaler: test_amp.py; large tensors and several GPUs: test_gpu.py; float64, where
    torch's square root is not correctly rounded: test_reference.py, with a derived bound.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import STATES, Snapshot, assert_same_bits, assert_same_training
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch_database import (
    INFO,
    Make,
    OptimizerErrorEnum,
    kwargs_of,
    on_each_device,
    on_each_input,
    on_each_input_and_flag,
)

from adamod_fused import AdaMod

pytestmark = on_each_device


@pytest.fixture
def make(index: int, flags: dict[str, bool], device: str) -> Make:
    """Makes an optimizer with the hyperparameters of the input under test."""
    return lambda params, **more: INFO.optim_cls(params, **kwargs_of(index, flags, device) | more)


class Regression:
    """The model of torch's checks, 10 outputs of 5 inputs, contiguous or not."""

    def __init__(self, device: str, contiguous: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        weight, bias = (torch.randn(*s, generator=generator) for s in ((10, 5, 2), (10, 2)))
        parts = (weight.to(device)[..., 0], bias.to(device)[..., 0])
        self.weight, self.bias = (Parameter(p.contiguous() if contiguous else p) for p in parts)
        self.input = torch.randn(5, generator=generator).to(device)

    @property
    def params(self) -> list[Tensor]:
        return [self.weight, self.bias]

    def backward(self) -> Tensor:
        self.weight.grad = self.bias.grad = None
        loss = (self.weight.mv(self.input) + self.bias).pow(2).sum()
        loss.backward()
        return loss.detach()

    def train(self, optimizer: AdaMod, schedulers: list[Any], steps: int = 20) -> bool:
        """Whether the loss went the way it should."""
        initial = self.backward()
        for _ in range(steps):
            loss = optimizer.step(self.backward)
            for scheduler in schedulers:
                plateau = isinstance(scheduler, ReduceLROnPlateau)
                scheduler.step(*([loss] if plateau else []))
        better = self.backward() - initial
        return bool(better > 0 if optimizer.param_groups[0]["maximize"] else better < 0)


def test_inputs_name_no_implementation(device: str) -> None:
    for given in INFO.optim_inputs_func(device=device):
        assert not {"foreach", "fused", "differentiable"} & given.kwargs.keys()


def test_errors(device: str) -> None:
    for wrong in INFO.optim_error_inputs_func(device=device, dtype=torch.float32):
        params, kwargs = wrong.optimizer_error_input.params, wrong.optimizer_error_input.kwargs
        expect = pytest.warns if issubclass(wrong.error_type, Warning) else pytest.raises
        optimizer = None
        if wrong.error_on is OptimizerErrorEnum.STEP_ERROR:
            optimizer = AdaMod(params, **kwargs)
        with expect(wrong.error_type, match=wrong.error_regex):
            AdaMod(params, **kwargs) if optimizer is None else optimizer.step()


@on_each_input
@pytest.mark.parametrize("contiguous", [True, False])
def test_right_direction(make: Make, device: str, contiguous: bool) -> None:
    model = Regression(device, contiguous)
    assert model.train(make(model.params), [])


@on_each_input
@pytest.mark.parametrize("which", range(len(INFO.scheduler_inputs)))
def test_right_direction_with_schedulers(make: Make, device: str, which: int) -> None:
    model = Regression(device)
    optimizer = make([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}])
    assert model.train(optimizer, [build(optimizer) for build in INFO.scheduler_inputs[which]])


@on_each_input
@pytest.mark.parametrize("shape", [(), (1, 1, 1)])
def test_tensor_lr(make: Make, device: str, shape: tuple[int, ...]) -> None:
    model, twin = Regression(device), Regression(device)
    with_tensor = make(model.params, lr=torch.full(shape, 2.0**-10))
    with_number = make(twin.params, lr=2.0**-10)
    assert model.train(with_tensor, [])
    twin.train(with_number, [])
    assert_same_training(with_tensor, with_number)


@on_each_input_and_flag
def test_a_groups_own_weight_decay(make: Make, device: str) -> None:
    model = Regression(device)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
    assert model.train(make(groups), [])


@on_each_input_and_flag
def test_a_groups_own_lr(make: Make, device: str) -> None:
    model, still = Regression(device), Parameter(torch.ones(2, device=device))
    optimizer = make([{"params": model.params}, {"params": [still], "lr": 0.0}])
    still.grad = torch.full_like(still, 0.5)
    assert model.train(optimizer, [])
    assert_same_bits(still, torch.ones(2))


@on_each_input_and_flag
def test_no_gradients_and_zero_gradients(make: Make, device: str) -> None:
    params = [Parameter(torch.ones(2, 3, device=device)) for _ in range(2)]
    optimizer = make(params, weight_decay=0.0)
    before = Snapshot(optimizer)
    assert optimizer.step(lambda: 1) == 1
    before.assert_unchanged()
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param in params:
        assert_same_bits(param, torch.ones(2, 3))
        assert {"step", *STATES} == optimizer.state[param].keys()


@on_each_input_and_flag
def test_printing(make: Make, device: str) -> None:
    assert "exp" not in repr(make([Parameter(torch.ones(2, device=device))]))
    assert repr(make([Parameter(torch.ones(2, device=device))])).startswith("AdaMod")


# Implementations against each other


def small_network(device: str, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()
    return nn.Sequential(*layers).to(device, dtype)


@on_each_input_and_flag
@pytest.mark.parametrize(
    ("dtype", "default"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:adamod_fused steps")
def test_the_same_bits_as_the_reference(
    index: int, flags: dict[str, bool], device: str, dtype: torch.dtype, default: torch.dtype
) -> None:
    inputs = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=dtype, device=device)
    models = [small_network(device, dtype) for _ in range(2)]
    # torch's bug 100701: a zero-size last parameter left the others unstepped.
    last = [torch.empty(0, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
    choices = (flags, {"backend": "reference"})
    torch.set_default_dtype(default)
    try:
        optimizers = [
            AdaMod([*model.parameters(), empty], **kwargs_of(index, choice, device))
            for model, empty, choice in zip(models, last, choices, strict=True)
        ]
        for step in range(7):
            for model, empty, optimizer in zip(models, last, optimizers, strict=True):
                optimizer.zero_grad()
                model[2].requires_grad_(step not in (3, 4))  # a layer frozen for a while
                if step != 2:  # a step without gradients
                    model(inputs).sum().backward()
                    empty.grad = torch.rand_like(empty)
                optimizer.step()
            assert_same_training(*optimizers)
    finally:
        torch.set_default_dtype(torch.float32)
    steps = [int(optimizers[0].state[param]["step"]) for param in models[0].parameters()]
    assert steps == [6, 6, 4, 4]


@on_each_input_and_flag
@pytest.mark.filterwarnings("ignore:adamod_fused steps")
def test_mixed_dtypes(index: int, flags: dict[str, bool], device: str) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    values = [torch.rand(2, 3).to(device, dtype) for dtype in dtypes]
    grads = [torch.rand_like(value) for value in values]
    optimizers = []
    for choice in (flags, {"backend": "reference"}):
        params = [Parameter(value.clone()) for value in values]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizers.append(AdaMod(params, **kwargs_of(index, choice, device)))
        for _ in range(7):
            optimizers[-1].step()
    assert_same_training(*optimizers)


def test_parameters_on_meta_with_fused(device: str) -> None:
    with torch.device("meta"):
        model = small_network("meta", torch.float32)
        optimizer = AdaMod(model.parameters(), fused=True)
        for param in model.parameters():
            param.grad = torch.rand_like(param)
    with pytest.raises(RuntimeError, match=r"fused=True: no kernel serves .* on meta"):
        optimizer.step()
    assert not optimizer.state


# Hooks


@on_each_input
def test_step_hooks(make: Make, device: str) -> None:
    called: list[str] = []

    def note(what: str) -> Any:
        return lambda *_: called.append(what)

    params = [torch.ones(2, device=device)]
    optimizer, other = make(params), torch.optim.SGD(params, lr=0.1)
    handles = [
        register_optimizer_step_pre_hook(note("every pre")),
        register_optimizer_step_post_hook(note("every post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
    ]
    try:
        optimizer.step()
        assert called == ["every pre", "pre", "post", "every post"]
        other.step()
        assert called[4:] == ["every pre", "every post"]
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(called) == 10


@on_each_input_and_flag
def test_a_state_for_every_parameter(make: Make, device: str) -> None:
    model = Regression(device)
    optimizer = make(model.params)
    model.backward()
    optimizer.step()
    for param, name in itertools.product(model.params, STATES):
        assert optimizer.state[param][name].device == param.device
        assert optimizer.state[param][name].abs().sum() > 0
