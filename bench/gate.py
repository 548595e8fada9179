"""The gate before any timing: ours equals its reference on a parameter list, bit for bit.

Ours steps the list whole, as it will be timed. The rule works element by element, so the reference
may step the same numbers in pieces, whatever tensors hold them: a huge list then needs no memory
for it, and thousands of small tensors take no longer than a few large ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from adamod_fused import AdaMod

from .contestants import Contestant
from .lists import Shape

PIECE = 1 << 20  # elements: more would leave a CPU's cache, fewer be many launches on a GPU

# Of one step after the other, and round again; no number a default. In the first the bound holds
# every element; in the second, after lr has dropped, hardly any; in the third some.
SETTINGS: tuple[dict[str, Any], ...] = (
    {
        "lr": 3e-2,
        "betas": (0.8, 0.95),
        "beta3": 0.5,
        "eps": 1e-6,
        "weight_decay": 0.1,
        "variant": "paper",
        "maximize": False,
    },
    {
        "lr": 2e-3,
        "betas": (0.9, 0.99),
        "beta3": 0.9,
        "eps": 1e-7,
        "weight_decay": 0.3,
        "variant": "released",
        "maximize": True,
    },
    {
        "lr": 2e-2,
        "betas": (0.7, 0.9),
        "beta3": 0.8,
        "eps": 1e-5,
        "weight_decay": 0.2,
        "variant": "paper",
        "maximize": False,
    },
)

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def differs(
    contestant: Contestant,
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    device: torch.device,
    steps: int = 3,
) -> str | None:
    """What of one of ours is not as the reference has it, in words; None if all is.

    Every parameter, state and step count is compared after ``steps`` steps, each with gradients
    and hyperparameters of its own, the latter set in the param groups as a scheduler sets them.

    Raises:
        ValueError: the contestant is not ours, so there is no reference that it should equal.
    """
    if not contestant.ours:
        raise ValueError(f"the gate is for our own backends, got {contestant.name!r}")
    data = PiecewiseNumbers(shapes, dtype, device)
    params = [Parameter(tensor) for tensor in data.tensors(0)]
    optimizer = contestant.make(params)
    for step in range(1, steps + 1):
        optimizer.zero_grad()  # the old gradients go before the new ones come
        for param, grad in zip(params, data.tensors(step), strict=True):
            param.grad = grad
        _step(optimizer, step)
    optimizer.zero_grad()

    counted = sorted({float(optimizer.state[param].get("step", 0)) for param in params})
    if counted != [steps]:
        return f"the states count {counted} steps after {steps}"
    unequal: dict[str, int] = {}
    first: dict[str, str] = {}
    for index, piece in enumerate(data.pieces):
        for name, expected in _reference(data, index, steps).items():
            held = [
                _held(optimizer, params[tensor], name)[start:stop] for tensor, start, stop in piece
            ]
            places = _places(torch.cat(held), expected)
            if len(places):
                unequal[name] = unequal.get(name, 0) + len(places)
                first.setdefault(name, _locate(piece, int(places[0]), shapes))
    words = [
        f"{name} differs in {count:,} of {data.numel:,} elements, first in {first[name]}"
        for name, count in unequal.items()
    ]
    return "; ".join(words) or None


class Span(NamedTuple):
    """The elements from ``start`` up to ``stop`` of one tensor of a list."""

    tensor: int
    start: int
    stop: int


Piece = list[Span]


def cut(shapes: Sequence[Shape]) -> Iterator[Piece]:
    """A list's elements in pieces of PIECE, the last of what is left."""
    piece: Piece = []
    room = PIECE
    for tensor, numel in enumerate(map(math.prod, shapes)):
        start = 0
        while start < numel:
            stop = min(numel, start + room)
            piece.append(Span(tensor, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece


class PiecewiseNumbers:
    """The numbers to step a list with, the same whether taken whole or by pieces."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None:
        self.pieces = list(cut(shapes))
        self.numel = sum(map(math.prod, shapes))
        self._shapes, self._dtype, self._device = shapes, dtype, device

    def piece(self, index: int, step: int) -> Tensor:
        """The gradients of a piece at a step from 1 on; at step 0, what its parameters start as."""
        start = (7919 * index + 104729 * step) % PIECE  # primes: no two start alike
        numel = sum(stop - start for _, start, stop in self.pieces[index])
        return _table(2 * PIECE, self._dtype, self._device)[start : start + numel]

    def tensors(self, step: int) -> list[Tensor]:
        """The same of all pieces, each tensor in memory of its own, as in a model."""
        tensors = [
            torch.empty(shape, dtype=self._dtype, device=self._device) for shape in self._shapes
        ]
        for index, piece in enumerate(self.pieces):
            sizes = [stop - start for _, start, stop in piece]
            parts = torch.split(self.piece(index, step), sizes)
            for (tensor, start, stop), part in zip(piece, parts, strict=True):
                tensors[tensor].view(-1)[start:stop] = part
        return tensors


@lru_cache(maxsize=4)
def _table(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers over six decades, one in ten of them 0."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(numel, generator=generator)
    numbers *= 10.0 ** torch.randint(-4, 2, numbers.shape, generator=generator)
    numbers *= torch.rand(numbers.shape, generator=generator) > 0.1
    return numbers.to(device, dtype)


def _step(optimizer: Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group.update(SETTINGS[(step - 1) % len(SETTINGS)])
    optimizer.step()


def _reference(data: PiecewiseNumbers, index: int, steps: int) -> dict[str, Tensor]:
    """A piece's parameters and states after ``steps`` steps of the reference."""
    param = Parameter(data.piece(index, 0).clone())
    optimizer = AdaMod([param], backend="reference")
    for step in range(1, steps + 1):
        param.grad = data.piece(index, step)
        _step(optimizer, step)
    return {"param": param} | {name: optimizer.state[param][name] for name in AdaMod.rule.states}


def _held(optimizer: Optimizer, param: Tensor, name: str) -> Tensor:
    """A parameter or one of its states, flat."""
    tensor: Tensor = param if name == "param" else optimizer.state[param][name]
    return tensor.view(-1)


def _places(actual: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors differ in a bit: unlike ``==`` this tells -0.0 from 0.0."""
    bits = (tensor.view(_BITS[tensor.dtype.itemsize]) for tensor in (actual, expected))
    return torch.ne(*bits).nonzero()


def _locate(piece: Piece, place: int, shapes: Sequence[Shape]) -> str:
    """The tensor and element that are at ``place`` of a piece."""
    for tensor, start, stop in piece:
        if place < stop - start:
            return f"tensor {tensor} of shape {shapes[tensor]}, element {start + place:,}"
        place -= stop - start
    raise IndexError(place)
