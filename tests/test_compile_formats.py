"""step() inside torch.compile with coded states and weights: no break, and the bits of eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    Snapshot,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
    train,
    train_step,
)
from torch._dynamo.testing import CompileCounterWithBackend
from twins import GPU, on_each_backend

from adamod_fused import AdaMod
from adamod_fused.formats import STATE_FORMATS, WEIGHT_FORMATS

pytestmark = pytest.mark.usefixtures("nothing_compiled")

SHAPES = ((7, 5), (33,), (), (0,), (3, 40))
FORMATS = [(s, w) for s in STATE_FORMATS for w in WEIGHT_FORMATS if (s, w) != ("fp32", "plain")]


def make(formats: tuple[str, str], backend: str | None = None, **options: Any) -> AdaMod:
    """In three groups: the second is plain, of the last the small parameters keep float32."""
    params = random_params(*SHAPES, dtype=torch.bfloat16)
    params[0].data = params[0].data.t()
    coded = {"state_format": formats[0], "weight_format": formats[1]}
    groups = [
        {"params": params[:2], **coded, "min_coded_numel": 0},
        {"params": params[2:3], "lr": 0.2},
        {"params": params[3:], **coded, "min_coded_numel": 36},
    ]
    return AdaMod(groups, **(OPTIONS | options), backend=backend)


def compiled_step(optimizer: AdaMod, backend: Any = "aot_eager") -> Any:
    return torch.compile(lambda: optimizer.step(), backend=backend, fullgraph=True)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_compiled_once_with_the_bits_of_eager(formats: tuple[str, str], backend: str) -> None:
    eager, compiled = make(formats, backend, seed=3), make(formats, backend, seed=3)
    counter = CompileCounterWithBackend("aot_eager")
    step = compiled_step(compiled, counter)
    for seed in range(4):
        train_step(eager, seed)
        set_random_grads(params_of(compiled), seed)
        step()
    assert_same_training(compiled, eager)
    assert counter.frame_count == 1


@pytest.mark.gpu
@on_each_backend
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_on_a_gpu(formats: tuple[str, str], backend: str) -> None:
    eager, on_host = make(formats, "cpu"), make(formats)
    params = [torch.nn.Parameter(param.detach().to(GPU)) for param in params_of(on_host)]
    groups = [group.copy() for group in on_host.param_groups]
    for group, part in zip(groups, (params[:2], params[2:3], params[3:]), strict=True):
        group |= {"params": part, "backend": backend}
    compiled = AdaMod(groups)
    step = compiled_step(compiled)
    for seed in range(3):
        train_step(eager, seed)
        for param, twin in zip(params, params_of(eager), strict=True):
            param.grad = twin.grad.to(GPU)
        step()
    assert_same_training(compiled, eager)


@pytest.mark.parametrize("formats", [("8bit", "split"), ("16bit", "stochastic")], ids=str)
def test_inductor(formats: tuple[str, str]) -> None:
    eager, compiled = make(formats), make(formats)
    step = compiled_step(compiled, "inductor")
    train(compiled, range(1))
    written = [*params_of(compiled), *(t for e in compiled.state.values() for t in e.values())]
    addresses = [tensor.data_ptr() for tensor in written]
    train(eager, range(1))
    for seed in range(1, 3):
        train_step(eager, seed)
        set_random_grads(params_of(compiled), seed)
        step()
    assert_same_training(compiled, eager)
    assert [tensor.data_ptr() for tensor in written] == addresses


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_rate_that_changes_costs_one_more_graph_at_most(tensor_lr: bool) -> None:
    start = torch.tensor(0.0625) if tensor_lr else 0.0625
    eager, compiled = (make(("8bit", "split"), lr=start) for _ in range(2))
    counter = CompileCounterWithBackend("aot_eager")
    step = compiled_step(compiled, counter)
    for seed in range(5):
        for optimizer in (eager, compiled):
            for group in optimizer.param_groups:
                lr = 0.0625 * 0.9**seed
                group["lr"] = torch.tensor(lr) if tensor_lr else lr
            set_random_grads(params_of(optimizer), seed)
        eager.step()
        step()
    assert_same_training(compiled, eager)
    assert counter.frame_count <= 2


def test_formats_and_gradients_may_change_after_a_compiled_step() -> None:
    eager, compiled = make(("8bit", "split")), make(("8bit", "split"))
    step = compiled_step(compiled)
    changes = [("8bit", "split"), ("16bit", "split"), ("fp32", "plain"), ("8bit", "stochastic")]
    for seed in range(8):
        for optimizer in (eager, compiled):
            for group in optimizer.param_groups:
                group["state_format"], group["weight_format"] = changes[seed // 2]
            set_random_grads(params_of(optimizer), seed)
            if seed % 2:  # others have other numbers then, and keep their own random bits
                params_of(optimizer)[0].grad = None
        eager.step()
        step()
        assert_same_training(compiled, eager)


def test_eager_and_compiled_steps_may_alternate_and_state_dicts_load() -> None:
    eager, compiled = make(("8bit", "split")), make(("8bit", "split"))
    step = compiled_step(compiled)
    for seed in range(6):
        train_step(eager, seed)
        set_random_grads(params_of(compiled), seed)
        if seed == 3:
            compiled.load_state_dict(compiled.state_dict())
        (step if seed % 2 else compiled.step)()
    assert_same_training(compiled, eager)


def test_seeds_of_any_size() -> None:
    """A schema's int has 63 bits and a sign."""
    for seed in (0, (1 << 63) - 1, (1 << 63) + 5, (1 << 64) + 5):
        torch._dynamo.reset()
        eager, compiled = (make(("8bit", "plain"), seed=seed) for _ in range(2))
        train_step(eager, 0)
        set_random_grads(params_of(compiled), 0)
        compiled_step(compiled)()
        assert_same_training(compiled, eager)


def test_bad_formats_are_refused_before_anything_changes() -> None:
    optimizer = make(("8bit", "split"))
    step = compiled_step(optimizer)
    train(optimizer, range(1))
    step()
    for name in ("state_format", "weight_format"):
        good = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = "other"
        before = Snapshot(optimizer)
        with pytest.raises(Exception, match=f"{name} must be one of"):
            step()
        before.assert_unchanged()
        optimizer.param_groups[0][name] = good
