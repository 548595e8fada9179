"""For the GPU tests: an optimizer on a GPU and its twin on the CPU backend, which must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from cases import GROUPS
from helpers import assert_same_bits
from torch import Tensor

from adamod_fused import AdaMod

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")

_needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
GPU_BACKENDS = ("cuda", pytest.param("triton", marks=_needs_triton))
on_each_backend = pytest.mark.parametrize("backend", GPU_BACKENDS)

Layout = Callable[[Tensor], Tensor]


def tensors(sizes: Sequence[int | tuple[int, ...]], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Random values on the CPU, the same ones at every call."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


class Twins:
    """Parameters stepped by ``backend`` on ``devices`` and by the CPU backend.

    Args:
        backend: of the groups that hold a parameter on a GPU.
        values: the parameters before their layout, on the CPU.
        groups: hyperparameters; parameter i is in group i modulo their number.
        layouts: how each parameter lies in memory, applied on its device.
        devices: parameter i is on device i modulo their number.
    """

    def __init__(
        self,
        backend: str | None,
        values: Sequence[Tensor],
        *,
        groups: Sequence[dict[str, Any]] = GROUPS,
        layouts: Sequence[Layout] = (lambda tensor: tensor,),
        devices: Sequence[torch.device] = (GPU,),
        seed: int = 1,
    ) -> None:
        layouts = [layouts[i % len(layouts)] for i in range(len(values))]
        devices = [devices[i % len(devices)] for i in range(len(values))]
        self.params = [
            torch.nn.Parameter(layout(value.to(device, copy=True)))
            for value, layout, device in zip(values, layouts, devices, strict=True)
        ]
        self.twins = [
            torch.nn.Parameter(layout(value.clone()))
            for value, layout in zip(values, layouts, strict=True)
        ]
        count = len(groups)
        self.optimizer = AdaMod(
            [
                # A group of CPU parameters alone cannot be asked to take a GPU's backend.
                group | {"params": params, "backend": backend if types != {"cpu"} else None}
                for group, params, types in (
                    (group, self.params[i::count], {d.type for d in devices[i::count]})
                    for i, group in enumerate(groups)
                )
            ]
        )
        self.twin_optimizer = AdaMod(
            [{**group, "params": self.twins[i :: len(groups)]} for i, group in enumerate(groups)],
            backend="cpu",
        )
        self._generator = torch.Generator().manual_seed(seed)

    def new_grads(self, *, in_place: bool = False) -> None:
        """Gradients over six decades, some zero, contiguous unless put into those at hand."""
        for param, twin in zip(self.params, self.twins, strict=True):
            grad = torch.randn(param.shape, generator=self._generator)
            grad *= 10.0 ** torch.randint(-4, 3, param.shape, generator=self._generator)
            grad *= torch.rand(param.shape, generator=self._generator) > 0.1
            if in_place and param.grad is not None:
                param.grad.copy_(grad)
            else:
                param.grad = grad.to(param.device, param.dtype)
            twin.grad = grad.to(twin.dtype)

    def step(self, count: int = 1) -> None:
        """Both, each step with fresh gradients; queued, not waited for."""
        for _ in range(count):
            self.new_grads()
            self.optimizer.step()
            self.twin_optimizer.step()

    def check(self, when: str = "at the end") -> None:
        """Every parameter and state has the bits of its twin; waits for all streams."""
        torch.cuda.synchronize()
        for i, (param, twin) in enumerate(zip(self.params, self.twins, strict=True)):
            assert_same_bits(param, twin, f"parameter {i} {when}")
            state, twin_state = self.optimizer.state[param], self.twin_optimizer.state[twin]
            assert state.keys() == twin_state.keys()
            for name, tensor in state.items():
                assert_same_bits(tensor, twin_state[name], f"{name} of parameter {i} {when}")
