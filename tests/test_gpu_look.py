"""Looks at steps on a real GPU: nothing waits for them, graphs repeat them, skips leave them.

That they are the reference's bit for bit is for test_observed.py to say, whose kernels are a GPU's
too where there is one.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers import OPTIONS
from twins import GPU, on_each_backend, tensors
from watched import STORED, Stored, check_looks, clip_all

from adamod_fused import AdaMod

pytestmark = pytest.mark.gpu

SIZES = (1 << 20, 3, 1, 16385, 777)
LONG = 100_000_000  # cycles; far more than the steps below are queued in


def pair(backend: str, **options: object) -> tuple[AdaMod, AdaMod]:
    """On the GPU and, its twin, on the CPU."""
    values = tensors(SIZES, torch.float32, seed=1)
    on_gpu = [torch.nn.Parameter(value.to(GPU)) for value in values]
    twins = [torch.nn.Parameter(value.clone()) for value in values]
    settings = {**OPTIONS, "track_bound": 1}
    return (
        AdaMod(on_gpu, **{**settings, **options}, backend=backend),
        AdaMod(twins, **settings, backend="cpu"),
    )


def set_grads(optimizers: tuple[AdaMod, AdaMod], seed: int, factor: float = 1.0) -> None:
    for optimizer in optimizers:
        params = optimizer.param_groups[0]["params"]
        for param, grad in zip(params, tensors(SIZES, torch.float32, seed), strict=True):
            value = grad * factor if param.is_cuda else grad
            if param.grad is None:
                param.grad = torch.empty_like(param)
            param.grad.copy_(value)


@on_each_backend
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_counts_on_the_gpu(stored: Stored, backend: str) -> None:
    check_looks(backend, stored, "cuda", capturable=True, before_step=clip_all)


@on_each_backend
def test_nothing_waits_before_the_look_is_read(backend: str) -> None:
    optimizer, twin = pair(backend)
    set_grads((optimizer, twin), 0)
    optimizer.step()  # compiles, makes states
    torch.cuda.synchronize()
    reached = torch.cuda.Event()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG)
        reached.record()
        for _ in range(3):
            optimizer.step()
        has_waited = reached.query()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert not has_waited
    for _ in range(4):
        twin.step()
    assert optimizer.bound_stats() == twin.bound_stats()


@on_each_backend
def test_a_captured_step_is_seen_at_every_replay(backend: str) -> None:
    lr = torch.tensor(OPTIONS["lr"], device=GPU, dtype=torch.float64)
    optimizer, twin = both = pair(backend, capturable=True, lr=lr)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        set_grads(both, 0)
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    twin.step()
    for replay in range(1, 4):
        twin.param_groups[0]["lr"] = OPTIONS["lr"] / replay
        lr.fill_(OPTIONS["lr"] / replay)
        set_grads(both, replay)
        graph.replay()
        twin.step()
        lr.zero_()  # the row has the lr of its step
        assert optimizer.bound_stats() == twin.bound_stats()
        assert optimizer.bound_stats("group") == twin.bound_stats("group")


@on_each_backend
def test_a_step_that_overflows_on_the_gpu_leaves_the_look_before(backend: str) -> None:
    optimizer, twin = both = pair(backend)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    scaler.scale(torch.ones((), device=GPU))
    for seed in range(4):
        set_grads(both, seed, scaler.get_scale())
        if is_spoilt := seed == 2:
            optimizer.param_groups[0]["params"][1].grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        if not is_spoilt:
            twin.step()
        assert optimizer.bound_stats() == twin.bound_stats()
