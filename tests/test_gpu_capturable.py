"""CUDA graphs of whole steps on a real GPU: replays equal eager steps, whatever changes between."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS, assert_same_bits
from torch import Tensor
from twins import GPU, on_each_backend, tensors

from adamod_fused import AdaMod

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("state_format")]

SIZES = (1 << 16, 3, 1, 777)
MANY = (64,) * 2000


class Captured:
    """An optimizer whose step is captured, and its twin on the CPU, whose steps are not."""

    def __init__(
        self,
        backend: str,
        sizes: tuple[int, ...],
        lr: Tensor,
        before_step: Callable[[AdaMod], object],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values = tensors(sizes, dtype, seed=1)
        self.lr, self.before_step = lr, before_step
        self.params = [torch.nn.Parameter(value.to(GPU)) for value in values]
        self.twins = [torch.nn.Parameter(value.clone()) for value in values]
        options = OPTIONS | {"lr": lr}
        self.optimizer = AdaMod(self.params, **options, capturable=True, backend=backend)
        self.twin = AdaMod(self.twins, **OPTIONS, backend="cpu")
        for param in self.params:
            param.grad = torch.zeros_like(param)
        self.seed = 0
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step(self.eager)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.eager()

    def eager(self) -> None:
        self.before_step(self.optimizer)
        self.optimizer.step()

    def step(self, run: Callable[[], object], spoil: float | None = None) -> None:
        """One step of both, by ``run`` on the GPU."""
        self.seed += 1
        grads = tensors([p.numel() for p in self.params], self.params[0].dtype, seed=self.seed)
        for param, twin, grad in zip(self.params, self.twins, grads, strict=True):
            if spoil is not None:
                grad[0] = spoil
            param.grad.copy_(grad)
            twin.grad = grad
        run()
        self.twin.param_groups[0]["lr"] = self.lr.item()
        if spoil is None:
            self.before_step(self.twin)
            self.twin.step()

    def check(self) -> None:
        for param, twin in zip(self.params, self.twins, strict=True):
            assert_same_bits(param.cpu(), twin)
            for name, state in self.twin.state[twin].items():
                assert_same_bits(self.optimizer.state[param][name].cpu(), state, name)


@on_each_backend
@pytest.mark.parametrize("sizes", [SIZES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replays_equal_eager_steps(
    dtype: torch.dtype, clip: bool, sizes: tuple[int, ...], backend: str
) -> None:
    """Also with a norm that is found and a coefficient that is used inside the graph."""
    before = (lambda optimizer: optimizer.clip_grad_norm_(0.5)) if clip else (lambda _: None)
    captured = Captured(backend, sizes, torch.tensor(0.03, device=GPU), before, dtype)
    captured.check()
    for replay in range(5):
        captured.lr.fill_(0.03 / (replay + 1))  # as a scheduler does between replays
        captured.step(captured.graph.replay)
        captured.check()


@on_each_backend
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_replay_that_finds_inf_changes_nothing(value: float, backend: str) -> None:
    found_inf = torch.zeros((), device=GPU)

    def look(optimizer: AdaMod) -> None:
        if optimizer.param_groups[0]["params"][0].is_cuda:
            norm = optimizer.clip_grad_norm_(math.inf)
            found_inf.copy_(norm.isfinite().logical_not())
            optimizer.found_inf = found_inf

    captured = Captured(backend, SIZES, torch.tensor(0.03, device=GPU), look)
    for spoil in (None, value, value, None):
        captured.step(captured.graph.replay, spoil)
        captured.check()


@on_each_backend
def test_a_scheduler_moves_a_learning_rate_on_the_device(backend: str) -> None:
    captured = Captured(backend, SIZES, torch.tensor(0.03, device=GPU), lambda _: None)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(captured.optimizer, 0.5)
    for _ in range(3):
        captured.step(captured.graph.replay)
        scheduler.step()
        assert captured.optimizer.param_groups[0]["lr"] is captured.lr
        captured.check()


@on_each_backend
def test_a_capture_without_capturable_is_refused(backend: str) -> None:
    param = torch.nn.Parameter(torch.ones(5, device=GPU))
    param.grad = torch.ones_like(param)
    optimizer = AdaMod([param], backend=backend)
    optimizer.step()
    before = param.detach().clone()
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="make the optimizer with capturable=True"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
    assert_same_bits(param, before)


@on_each_backend
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_scaler_on_the_gpu(unscale_first: bool, backend: str) -> None:
    """Where a clip knows the scaler, its own update is the only one to wait for a value."""
    values = tensors(SIZES, torch.float32, seed=1)
    params = [torch.nn.Parameter(value.to(GPU)) for value in values]
    twins = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    twin = AdaMod(twins, **OPTIONS, backend="cpu")
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    scaler.scale(torch.ones((), device=GPU))
    for step in range(5):
        spoil = step == 2
        scale = scaler.get_scale()
        for param, other, grad in zip(
            params, twins, tensors(SIZES, torch.float32, seed=step), strict=True
        ):
            param.grad = (grad * scale).to(GPU)
            other.grad = grad
        if spoil:
            params[1].grad[0] = math.inf
        torch.cuda.set_sync_debug_mode("default" if unscale_first else "error")
        try:
            if unscale_first:
                scaler.unscale_(optimizer)
                optimizer.clip_grad_norm_(0.5)
            else:
                optimizer.clip_grad_norm_(0.5, grad_scaler=scaler)
            scaler.step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scaler.update()
        if not spoil:
            twin.clip_grad_norm_(0.5)
            twin.step()
        for param, other in zip(params, twins, strict=True):
            assert_same_bits(param.cpu(), other)
            for name, state in twin.state.get(other, {}).items():
                assert_same_bits(optimizer.state[param][name].cpu(), state, name)


@on_each_backend
@pytest.mark.parametrize("clip", [None, "unscaled", "folded"])
@pytest.mark.parametrize("on_gpu", [[0, 1, 2], [1], []], ids=["parameters", "both", "scale"])
def test_a_scaler_on_another_device(on_gpu: list[int], clip: str | None, backend: str) -> None:
    """Its scale lies where the first loss was; parameters elsewhere are told all the same."""
    scale_on = GPU if not on_gpu else torch.device("cpu")
    values = tensors((3, 777, 1), torch.float32, seed=1)
    params = [
        torch.nn.Parameter(value.to(GPU if i in on_gpu else "cpu", copy=True))
        for i, value in enumerate(values)
    ]
    twins = [torch.nn.Parameter(value.clone()) for value in values]
    groups = [{"params": [p], "backend": backend if p.is_cuda else "cpu"} for p in params]
    optimizer, twin = AdaMod(groups, **OPTIONS), AdaMod(twins, **OPTIONS, backend="cpu")
    scaler = torch.amp.GradScaler(scale_on.type, init_scale=2.0**10)
    assert scaler.scale(torch.ones((), device=scale_on)).device == scale_on
    for step in range(5):
        spoil = step == 2
        scale = scaler.get_scale()
        for param, other, grad in zip(
            params, twins, tensors((3, 777, 1), torch.float32, seed=step), strict=True
        ):
            param.grad = (grad * scale).to(param.device)
            other.grad = grad
        if spoil:
            params[1].grad[0] = math.inf
        if clip == "unscaled":
            scaler.unscale_(optimizer)
        if clip:
            optimizer.clip_grad_norm_(0.5, grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if spoil else scale)
        if not spoil:
            if clip:
                twin.clip_grad_norm_(0.5)
            twin.step()
        for param, other in zip(params, twins, strict=True):
            assert_same_bits(param.cpu(), other)
            for name, state in twin.state.get(other, {}).items():
                assert_same_bits(optimizer.state[param][name].cpu(), state, name)
