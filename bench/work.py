"""What a contestant works on: parameters, fresh gradients for every step, an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .contestants import Contestant
from .lists import Shape

SEED = 1
FIRST_SLEEP = 1e-3  # seconds


class ValuesAndGrads(NamedTuple):
    """The values that every contestant starts with and the gradients that all are given."""

    values: list[Tensor]
    grads: list[Tensor]

    @classmethod
    def make(
        cls, shapes: tuple[Shape, ...], dtype: torch.dtype, device: torch.device
    ) -> ValuesAndGrads:
        generator = torch.Generator(device).manual_seed(SEED)

        def tensors() -> list[Tensor]:
            return [
                torch.randn(shape, dtype=dtype, device=device, generator=generator)
                for shape in shapes
            ]

        return cls(tensors(), tensors())


class Work:
    """A contestant with parameters of its own, in ``copies`` sets that take turns.

    Raises:
        Exception: whatever the contestant raises when it is made.
    """

    def __init__(self, contestant: Contestant, data: ValuesAndGrads, copies: int = 1) -> None:
        self.contestant = contestant
        self.copies = copies
        self.sleep = FIRST_SLEEP  # for a GPU's clock
        self._grads = data.grads
        self._sets = [[Parameter(value.clone()) for value in data.values] for _ in range(copies)]
        self._optimizers = [contestant.make(params) for params in self._sets]

    def make_grads(self, turn: int = 0) -> None:
        """New gradient tensors, as after ``zero_grad(set_to_none=True)`` and a backward pass."""
        for param in self._sets[turn]:
            param.grad = None
        for param, grad in zip(self._sets[turn], self._grads, strict=True):
            param.grad = grad.clone()

    def drop_grads(self) -> None:
        for params in self._sets:
            for param in params:
                param.grad = None

    def step(self, turn: int = 0) -> None:
        self._optimizers[turn].step()

    def state_bytes(self) -> int:
        """Of the states of one set that grow with the parameters; 0 before the first step."""
        seen: set[int] = set()
        total = 0
        state = self._optimizers[0].state
        for param in self._sets[0]:
            for tensor in _tensors(state.get(param)):
                # A single element is a count of steps; what several parameters share, as a
                # quantization map, counts once.
                if tensor.numel() > 1 and tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    total += tensor.nbytes
        return total


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors that a state is made of; quantized ones are wrappers around several."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            names, _ = value.__tensor_flatten__()
            for name in names:
                yield from _tensors(getattr(value, name))
        else:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):  # flashoptim's quantized states
        yield from _tensors(vars(value))
