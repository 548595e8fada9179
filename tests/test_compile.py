"""step() inside torch.compile: the bits of eager, no break of the graph, no endless recompiling."""

from __future__ import annotations

import copy
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train,
    train_step,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import lr_scheduler

from adamod_fused import AdaMod, backends, list_plans, lists

SECONDS = 300  # for a child process: importing torch and one compilation take about 10


pytestmark = pytest.mark.usefixtures("nothing_compiled")


class CompiledStep:
    """``optimizer.step`` compiled; ``graphs``: how many it took, ``fullgraph``: with no break."""

    def __init__(self, optimizer: AdaMod, *, fullgraph: bool = True) -> None:
        self.optimizer = optimizer
        self._counter = CompileCounterWithBackend("aot_eager")
        self._step = torch.compile(
            lambda: self.optimizer.step(), backend=self._counter, fullgraph=fullgraph
        )

    @property
    def graphs(self) -> int:
        return self._counter.frame_count

    def __call__(self, seed: int) -> None:
        set_random_grads(params_of(self.optimizer), seed)
        self._step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_compiled_once_with_the_bits_of_eager(dtype: torch.dtype, backend: str) -> None:
    eager = make_optimizer(dtype, backend=backend)
    step = CompiledStep(make_optimizer(dtype, backend=backend))
    graphs = []
    for seed in range(5):
        train_step(eager, seed)
        step(seed)
        graphs.append(step.graphs)
    assert_same_training(step.optimizer, eager)
    assert graphs == graphs[:1] * 5


def test_inductor() -> None:
    eager, compiled = make_optimizer(), make_optimizer()
    addresses = [param.data_ptr() for param in params_of(compiled)]
    step = torch.compile(lambda: compiled.step(), backend="inductor", fullgraph=True)
    for seed in range(3):
        train_step(eager, seed)
        set_random_grads(params_of(compiled), seed)
        step()
    assert_same_training(compiled, eager)
    assert [param.data_ptr() for param in params_of(compiled)] == addresses


def test_eager_and_compiled_steps_may_alternate() -> None:
    eager, step = make_optimizer(), CompiledStep(make_optimizer())
    for seed in range(6):
        train_step(eager, seed)
        if seed % 2:
            step(seed)
        else:
            train_step(step.optimizer, seed)
    assert_same_training(step.optimizer, eager)


SCHEDULERS: dict[str, Callable[[AdaMod], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=9),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_costs_one_more_graph_at_most(name: str, tensor_lr: bool) -> None:
    def make() -> AdaMod:
        lr = torch.tensor(0.0625) if tensor_lr else 0.0625
        return AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": lr})

    # Dynamo does not look into the wrapper that schedulers put around step(): a break for each
    # optimizer of torch.
    eager, step = make(), CompiledStep(make(), fullgraph=False)
    schedulers = [SCHEDULERS[name](eager), SCHEDULERS[name](step.optimizer)]
    rates = set()
    for seed in range(8):
        train_step(eager, seed)
        step(seed)
        rates.add(float(eager.param_groups[0]["lr"]))
        for scheduler in schedulers:
            scheduler.step()
    assert_same_training(step.optimizer, eager)
    assert len(rates) == 8
    # A number that has changed once becomes an input of the graph; a tensor always is one.
    assert step.graphs == (1 if tensor_lr and name == "LambdaLR" else 2)


def make_model() -> tuple[torch.nn.Module, AdaMod]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    return model, AdaMod(model.parameters(), **OPTIONS)


def batch(seed: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def accumulate_and_step(model: torch.nn.Module, optimizer: AdaMod, *batches: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    for inputs in batches:
        model(inputs).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("batches", [1, 2])
def test_whole_training_step(batches: int) -> None:
    (model, eager), (compiled_model, compiled) = make_model(), make_model()
    counter = CompileCounterWithBackend("aot_eager")
    compiled_step = torch.compile(accumulate_and_step, backend=counter)
    graphs = []
    for seed in range(4):
        inputs = [batch(10 * seed + i) for i in range(batches)]
        accumulate_and_step(model, eager, *inputs)
        compiled_step(compiled_model, compiled, *inputs)
        graphs.append(counter.frame_count)
    assert_same_training(compiled, eager)
    assert graphs[1:] == graphs[:-1]


def test_step_after_a_compiled_backward_or_not_compiled_at_all() -> None:
    (model, eager), (compiled_model, compiled), (disabled_model, disabled) = (
        make_model() for _ in range(3)
    )
    forward = torch.compile(compiled_model, backend="aot_eager")
    step = torch.compiler.disable(disabled.step)

    @torch.compile(backend="aot_eager")
    def train_disabled(inputs: torch.Tensor) -> None:
        disabled.zero_grad()
        disabled_model(inputs).square().sum().backward()
        step()

    for seed in range(3):
        accumulate_and_step(model, eager, batch(seed))
        accumulate_and_step(forward, compiled, batch(seed))
        train_disabled(batch(seed))
    assert_same_training(compiled, eager)
    assert_same_training(disabled, eager)


def test_closure() -> None:
    (model, eager), (compiled_model, compiled) = make_model(), make_model()

    def step(model: torch.nn.Module, optimizer: AdaMod, inputs: torch.Tensor) -> torch.Tensor:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().sum()
            loss.backward()
            return loss

        return optimizer.step(closure)

    compiled_step = torch.compile(step, backend="aot_eager")
    for seed in range(3):
        loss = step(model, eager, batch(seed))
        assert torch.equal(compiled_step(compiled_model, compiled, batch(seed)), loss)
    assert_same_training(compiled, eager)


def test_parameters_without_gradients_are_left_alone_until_they_have_one() -> None:
    eager, compiled = make_optimizer(), make_optimizer()
    step = torch.compile(lambda: compiled.step(), backend="aot_eager", fullgraph=True)
    for seed, missing in enumerate(([0, 1, 3], [0, 1, 3], [3], [2], [])):
        for optimizer in (eager, compiled):
            set_random_grads(params_of(optimizer), seed)
            for i in missing:
                params_of(optimizer)[i].grad = None
        eager.step()
        step()
        assert_same_training(compiled, eager)


def test_no_gradients_at_all() -> None:
    optimizer = make_optimizer()
    before = Snapshot(optimizer)
    torch.compile(lambda: optimizer.step(), backend="aot_eager", fullgraph=True)()
    before.assert_unchanged()


def test_one_compiled_function_for_several_optimizers() -> None:
    eager = [make_optimizer(seed=seed) for seed in range(2)]
    compiled = [make_optimizer(seed=seed) for seed in range(2)]
    step = torch.compile(lambda optimizer: optimizer.step(), backend="aot_eager", fullgraph=True)
    for seed in range(4):
        for one, other in zip(eager, compiled, strict=True):
            train_step(one, seed)
            set_random_grads(params_of(other), seed)
            step(other)
    for one, other in zip(eager, compiled, strict=True):
        assert_same_training(other, one)


def test_state_dicts_go_between_eager_and_compiled() -> None:
    straight = make_optimizer()
    train(straight, range(6))
    first = CompiledStep(make_optimizer())
    first(0)
    first(1)
    second = make_optimizer(seed=1)
    second.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    with torch.no_grad():
        for param, source in zip(params_of(second), params_of(first.optimizer), strict=True):
            param.copy_(source)
    train(second, range(2, 4))
    with torch.no_grad():
        for param, source in zip(params_of(first.optimizer), params_of(second), strict=True):
            param.copy_(source)
    first.optimizer.load_state_dict(second.state_dict())  # into one that is compiled already
    first(4)
    first(5)
    assert_same_training(first.optimizer, straight)


def test_bad_hyperparameters_are_refused_before_anything_changes() -> None:
    lr = torch.tensor(0.5)
    step = CompiledStep(AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": lr}))
    step(0)
    lr.fill_(-1.0)
    before = Snapshot(step.optimizer)
    with pytest.raises(ValueError, match="lr must be finite and >= 0"):
        step(1)
    before.assert_unchanged()
    assert step.graphs == 1


@pytest.mark.parametrize("fused_from_the_start", [False, True])
def test_fused_never_takes_the_reference(
    fused_from_the_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CompiledStep(make_optimizer(fused=fused_from_the_start))
    for seed in range(3):
        step(seed)
    monkeypatch.setattr(backends, "_BACKENDS", {})
    monkeypatch.setattr(lists, "_plans", list_plans.KeptPlans())  # of the backends that were there
    for group in step.optimizer.param_groups:
        group["fused"] = True
    before = Snapshot(step.optimizer)
    with pytest.raises(RuntimeError, match=r"fused=True: no kernel serves torch\.float32"):
        step(3)
    before.assert_unchanged()


def test_fused_and_the_reference_contradict_each_other() -> None:
    step = CompiledStep(make_optimizer(backend="reference"))
    step(0)
    for group in step.optimizer.param_groups:
        group["fused"] = True
    before = Snapshot(step.optimizer)
    with pytest.raises(ValueError, match="fused=True asks for a kernel"):
        step(1)
    before.assert_unchanged()


needs_autograd_in_graphs = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    reason="this torch breaks every graph at backward()",
)


def compile_backward_and_step() -> None:
    (model, eager), (compiled_model, compiled) = make_model(), make_model()

    def step(model: torch.nn.Module, optimizer: AdaMod, inputs: torch.Tensor) -> None:
        for param in model.parameters():
            param.grad = None
        model(inputs).square().sum().backward()
        optimizer.step()

    compiled_step = torch.compile(step, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="one step that is not compiled"):
            compiled_step(compiled_model, compiled, batch(0))
        step(model, eager, batch(0))
        step(compiled_model, compiled, batch(0))
        for seed in range(1, 4):
            step(model, eager, batch(seed))
            compiled_step(compiled_model, compiled, batch(seed))
    assert_same_training(compiled, eager)


@needs_autograd_in_graphs
def test_backward_and_step_in_one_graph() -> None:
    # In a process of its own: in torch 2.13 a graph with a backward() in it leaves something
    # behind that makes dynamo fail at the next break of any graph, whatever torch._dynamo.reset().
    child = multiprocessing.get_context("spawn").Process(target=compile_backward_and_step)
    child.start()
    child.join(SECONDS)
    child.kill()
    child.join()
    assert child.exitcode == 0


def test_importing_the_package_does_not_import_dynamo() -> None:
    """Which takes seconds, and which only optimizers need."""
    code = "import sys, adamod_fused; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)
