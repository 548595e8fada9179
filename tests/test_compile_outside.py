"""What of a compiled training step goes outside of the graph: clips, and tensors of other kinds."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train_step,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_map_only

from adamod_fused import AdaMod

pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.mark.parametrize("clip_in_function", [False, True])
def test_a_clipped_step_goes_outside_of_the_graph(clip_in_function: bool) -> None:
    """Every other step is clipped: each of the two ways is taken after the other, and again."""
    eager, compiled = make_optimizer(), make_optimizer()
    counter = CompileCounterWithBackend("aot_eager")

    def clip(optimizer: AdaMod, seed: int) -> Tensor | None:
        return optimizer.clip_grad_norm_(0.5) if seed % 2 else None

    def clip_and_step(optimizer: AdaMod, seed: int) -> Tensor | None:
        norm = clip(optimizer, seed)
        optimizer.step()
        return norm

    compiled_function = torch.compile(
        clip_and_step if clip_in_function else AdaMod.step, backend=counter
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Dynamo .*(builtin|lru_cache)")  # it looks into the step
        for seed in range(6):
            for optimizer in (eager, compiled):
                set_random_grads(params_of(optimizer), seed)
            norm = clip_and_step(eager, seed)
            if clip_in_function:
                compiled_norm = compiled_function(compiled, seed)
            else:
                compiled_norm = clip(compiled, seed)
                compiled_function(compiled)
            assert norm is None or torch.equal(norm, compiled_norm)
            assert_same_training(compiled, eager)
    assert counter.frame_count == 2  # before there are states, and after


class Elsewhere(torch.Tensor):
    """A tensor that keeps its elements in another one, as DTensor does."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        self.inner = inner
        return self

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> Elsewhere:
        return Elsewhere(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrap(tree: Any) -> Any:
            return tree_map_only(Elsewhere, lambda tensor: tensor.inner, tree)

        out = func(*unwrap(args), **unwrap(kwargs or {}))
        if func._schema.name.endswith("_"):  # in place: what came in goes out
            return args[0]
        return tree_map_only(torch.Tensor, Elsewhere, out)


def test_tensors_whose_elements_lie_elsewhere_are_stepped_outside_of_the_graph() -> None:
    (plain,) = random_params((3, 4))
    param = torch.nn.Parameter(Elsewhere(plain.detach().clone()))
    eager = AdaMod([plain], **OPTIONS, backend="reference")
    compiled = AdaMod([param], **OPTIONS, backend="reference")
    step = torch.compile(lambda: compiled.step(), backend="aot_eager")
    for seed in range(3):
        train_step(eager, seed)
        param.grad = Elsewhere(plain.grad)
        step()
    assert_same_bits(param.detach().inner, plain)
