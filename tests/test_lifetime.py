"""What a step keeps alive and for how long, and memory that two tensors share."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_training,
    launching,
    random_params,
    set_random_grads,
)

from adamod_fused import AdaMod, functional
from adamod_fused.backends.cpu import CpuBackend

both = pytest.mark.parametrize("backend", ["cpu", "reference"])


@both
def test_gradients_are_let_go_after_the_step(backend: str) -> None:
    params = random_params((4,), (2, 3))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    set_random_grads(params, 0)
    grads = [weakref.ref(param.grad) for param in params]
    optimizer.step()
    optimizer.zero_grad()
    assert [grad() for grad in grads] == [None, None]


class MainGrad(torch.nn.Parameter):
    """A parameter whose gradient is made each time it is asked for, from a master gradient."""

    @property
    def grad(self):
        return self.main_grad.to(self.dtype)


@both
def test_a_gradient_that_lives_only_as_long_as_it_is_held(backend: str) -> None:
    values = torch.randn(2000)
    plain, made = torch.nn.Parameter(values.clone()), MainGrad(values.clone())
    made.main_grad = torch.randn(2000, dtype=torch.float64)
    plain.grad = made.main_grad.float()
    for param in (plain, made):
        optimizer = AdaMod([param], **OPTIONS, backend=backend)
        for _ in range(3):
            optimizer.step()
    assert_same_bits(made, plain)


class Rude(torch.nn.Parameter):
    """A parameter that calls ``on_read`` before it gives its gradient."""

    on_read = staticmethod(lambda: None)

    @property
    def grad(self):
        self.on_read()
        return self.main_grad


def test_states_dropped_while_a_gradient_is_read() -> None:
    """Reading one gradient drops the states of all: this step is done with those it began with."""
    values = [torch.randn(100) for _ in range(12)]
    plain = [torch.nn.Parameter(value.clone()) for value in values]
    rude = [Rude(value.clone()) for value in values]
    optimizers = [AdaMod(params, **OPTIONS, backend="cpu") for params in (plain, rude)]
    for step in range(3):
        set_random_grads(plain, step)
        for twin, param in zip(plain, rude, strict=True):
            param.main_grad = twin.grad
        if step == 2:
            states = [weakref.ref(t) for p in rude for t in optimizers[1].state[p].values()]
            rude[0].on_read = optimizers[1].state.clear
        for optimizer in optimizers:
            optimizer.step()
    assert not any(state() is not None for state in states)
    for param, twin in zip(rude, plain, strict=True):
        assert_same_bits(param, twin)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("stored", ["fp32", "8bit"])
@pytest.mark.filterwarnings("ignore:Profiler record function")
def test_a_compiled_step_frees_the_parameters_with_the_optimizer(stored: str) -> None:
    """By reference counting: the collector may come late, and GPU memory is scarce."""
    param = torch.nn.Parameter(torch.randn(5))
    param.grad = torch.randn(5)
    optimizer = AdaMod([param], state_format=stored, min_coded_numel=0)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(2):
        step()
    held = [weakref.ref(tensor) for tensor in (param, param.grad)]
    held += [weakref.ref(state) for state in optimizer.state[param].values()]
    gc.collect()
    gc.disable()
    try:
        del optimizer, step, param
        assert [tensor() for tensor in held] == [None] * len(held)
    finally:
        gc.enable()


def test_a_step_inside_a_step_is_refused(backend: str) -> None:
    param = Rude(torch.randn(5))
    param.main_grad = torch.randn(5)
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    optimizer.step()
    before = param.detach().clone()
    param.on_read = optimizer.step
    with pytest.raises(RuntimeError, match=r"while step\(\) of this optimizer was running"):
        optimizer.step()
    assert_same_bits(param, before)
    param.on_read = lambda: None
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


CALLS = {
    "step()": AdaMod.step,
    "clip_grad_norm_()": lambda optimizer: optimizer.clip_grad_norm_(1e-3),
    "load_state_dict()": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
}


@pytest.mark.parametrize("running", ["step()", "clip_grad_norm_()"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_by_another_thread_meanwhile_is_refused(
    call: str, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel lets other Python threads run, and reads the table that the call would write."""
    params, twins = random_params((4,)), random_params((4,))
    optimizer, twin = (AdaMod(each, **OPTIONS, backend="cpu") for each in (params, twins))
    for each in (optimizer, twin):
        set_random_grads(each.param_groups[0]["params"], 0)
        each.step()
    refused = []
    message = re.escape(f"{call} was called while {running} of this optimizer was running, by anot")

    def call_beside() -> None:
        with pytest.raises(RuntimeError, match=message):
            CALLS[call](optimizer)
        refused.append(True)

    def run_beside_another(kernel: Callable[..., Any], *arguments: Any) -> Any:
        thread = threading.Thread(target=call_beside)
        thread.start()
        thread.join(30)
        return kernel(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(
            CpuBackend, "launcher", launching(lambda launch, *_: run_beside_another(launch))
        )
        sum_squares = partial(run_beside_another, CpuBackend().sum_squares)
        patched.setattr(CpuBackend, "sum_squares", lambda _, *arguments: sum_squares(*arguments))
        CALLS[running](optimizer)
    assert refused == [True]
    CALLS[running](twin)
    for each in (optimizer, twin):
        each.step()
    assert_same_training(optimizer, twin)


def test_what_a_kernel_reads_is_held_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch lets other Python threads run; here what they might drop is dropped for them."""
    params = random_params((4,), (2, 3))
    optimizer = AdaMod(params, **OPTIONS, backend="cpu")
    set_random_grads(params, 0)
    optimizer.step()
    set_random_grads(params, 1)
    tensors = [weakref.ref(t) for p in params for t in (p.grad, *optimizer.state[p].values())]

    def drop_and_run(launch: Callable[[], None], *_: Any) -> None:
        optimizer.state.clear()
        optimizer.zero_grad()
        assert all(tensor() is not None for tensor in tensors)
        launch()

    monkeypatch.setattr(CpuBackend, "launcher", launching(drop_and_run))
    optimizer.step()
    assert not any(tensor() is not None for tensor in tensors)


@both
def test_a_cycle_through_the_optimizer_is_collected(backend: str) -> None:
    param = random_params((3,))[0]
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    set_random_grads([param], 0)
    optimizer.step()
    param.optimizer = optimizer
    gone = weakref.ref(param)
    del param, optimizer
    gc.collect()
    assert gone() is None


@both
def test_parameters_that_share_memory_are_refused(backend: str) -> None:
    memory = torch.zeros(10)
    params = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[5:])]
    set_random_grads(params, 0)
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    with pytest.raises(ValueError, match="parameter 0 of group 0 and parameter 1 of group 0 share"):
        optimizer.step()
    assert not memory.any()
    assert not optimizer.state


@both
def test_neighbours_and_interleaved_parameters_are_served(backend: str) -> None:
    def train(views: bool) -> list[torch.Tensor]:
        memory = torch.linspace(-1, 1, 24).view(2, 12)
        parts = [memory[0, :5], memory[0, 5:], memory[1, ::2], memory[1, 1::2]]
        params = [torch.nn.Parameter(part if views else part.clone()) for part in parts]
        optimizer = AdaMod(params, **OPTIONS, backend=backend)
        for step in range(3):
            set_random_grads(params, step)
            optimizer.step()
        return params

    for view, alone in zip(train(True), train(False), strict=True):
        assert_same_bits(view, alone)


@both
@pytest.mark.parametrize("shared", ["step", "state"])
def test_states_that_share_memory_are_refused(shared: str, backend: str) -> None:
    params = [torch.zeros(3), torch.zeros(3)]
    grads = [torch.ones(3), torch.ones(3)]
    states = [[torch.zeros(3), torch.zeros(3)] for _ in range(3)]
    steps = [torch.tensor(0.0), torch.tensor(0.0)]
    if shared == "step":
        steps[1] = steps[0]
    else:
        states[2] = states[1]
    options = {k: v for k, v in OPTIONS.items() if k != "betas"}
    with pytest.raises(ValueError, match="share memory"):
        functional.adamod(
            params, grads, *states, steps, beta1=0.9, beta2=0.9, **options, backend=backend
        )
    assert not any(t.any() for t in (*params, *states[0], *steps))


def test_a_failing_launch_leaves_steps_that_fit_their_parameters(monkeypatch) -> None:
    """One batch done, the next one fails: the first has stepped, the second has not."""
    single, double = torch.zeros(3), torch.zeros(3, dtype=torch.float64)
    optimizer = AdaMod([single, double], **OPTIONS, backend="cpu")

    def fail(launch, self, rule, table, index, device, dtype, *others) -> None:
        if dtype == torch.float64:
            raise RuntimeError("out of luck")
        launch()

    monkeypatch.setattr(CpuBackend, "launcher", launching(fail))
    set_random_grads([single, double], 0)
    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step()
    assert single.any()
    assert optimizer.state[single]["step"] == 1
    assert not double.any()
    assert optimizer.state[double]["step"] == 0
