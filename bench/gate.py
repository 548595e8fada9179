"""The gate before any timing: ours equals its reference on a parameter list, bit for bit.

Ours steps the list whole, as it will be timed. The rule works element by element, so the reference
may step the same numbers in pieces, whatever tensors hold them: a huge list then needs no memory
for it, and thousands of small tensors take no longer than a few large ones.

What is coded depends on the tensor and the place in it, so there a piece is of one tensor; and as
the reference takes a hundred times as long as the kernel, it steps a sample of the pieces.
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

from adamod_fused import AdaMod, codes, reference
from adamod_fused.coded_states import new_exponents, state_dtype
from adamod_fused.formats import EXPONENTS, REMAINDER, formats_of

from .contestants import Contestant
from .lists import Shape

PIECE = 1 << 20  # elements: more would leave a CPU's cache, fewer be many launches on a GPU
CODED_PIECE = 1 << 15  # of the reference's 64-bit integers, which are many
SAMPLE = 32  # of the coded pieces

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

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    and hyperparameters of its own, the latter set in the param groups as a scheduler sets them. Of
    ours in other formats than the default ones, every count, and the rest of a sample.

    Raises:
        ValueError: the contestant is not ours, so there is no reference that it should equal.
    """
    if not contestant.ours:
        raise ValueError(f"the gate is for our own backends, got {contestant.name!r}")
    coded = not contestant.formats.are_plain
    data = PiecewiseNumbers(shapes, dtype, device, coded)
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
    checked = 0
    for index in sample(len(data.pieces)) if coded else range(len(data.pieces)):
        piece = data.pieces[index]
        checked += sum(stop - start for _, start, stop in piece)
        found = (
            _coded_reference(data, index, steps, optimizer, params)
            if coded
            else _reference(data, index, steps)
        )
        for name, expected in found.items():
            held = [_held(optimizer, params[span.tensor], name, span) for span in piece]
            places = _places(torch.cat(held), expected)
            if len(places):
                unequal[name] = unequal.get(name, 0) + len(places)
                first.setdefault(name, _locate(piece, int(places[0]), shapes))
    words = [
        f"{name} differs in {count:,} of {checked:,} elements, first in {first[name]}"
        for name, count in unequal.items()
    ]
    return "; ".join(words) or None


class Span(NamedTuple):
    """The elements from ``start`` up to ``stop`` of one tensor of a list."""

    tensor: int
    start: int
    stop: int


Piece = list[Span]


def sample(count: int) -> list[int]:
    """SAMPLE of so many pieces, evenly spread, the first and the last among them; all of fewer."""
    if count <= SAMPLE:
        return list(range(count))
    return [i * (count - 1) // (SAMPLE - 1) for i in range(SAMPLE)]


def cut_each(shapes: Sequence[Shape]) -> Iterator[Piece]:
    """A list's elements in pieces of CODED_PIECE, each of a single tensor."""
    for tensor, numel in enumerate(map(math.prod, shapes)):
        for start in range(0, numel, CODED_PIECE):
            yield [Span(tensor, start, min(numel, start + CODED_PIECE))]


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

    def __init__(
        self,
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        device: torch.device,
        coded: bool = False,
    ) -> None:
        self.pieces = list(cut_each(shapes) if coded else cut(shapes))
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


def _coded_reference(
    data: PiecewiseNumbers,
    index: int,
    steps: int,
    optimizer: Optimizer,
    params: Sequence[Tensor],
) -> dict[str, Tensor]:
    """The same in the formats that the optimizer's keywords give the piece's tensor."""
    ((tensor, start, _),) = data.pieces[index]
    rule, group = AdaMod.rule, optimizer.param_groups[0]
    formats = formats_of(params[tensor], group, "the tensor")
    param = data.piece(index, 0).clone()
    states = [torch.zeros_like(param, dtype=state_dtype(param, formats)) for _ in rule.states]
    remainder = torch.zeros_like(param, dtype=torch.int16) if formats.splits_weights else None
    coded = None
    if not formats.are_plain:
        coded = reference.Coded(
            new_exponents(param, len(states)) if formats.codes_states else None,
            remainder,
            start,
            codes.key_of(group["seed"], tensor),
            formats.weight == "stochastic",
        )
    for step in range(1, steps + 1):
        scalars = rule.prepare(step, **SETTINGS[(step - 1) % len(SETTINGS)])
        reference.step_(rule, scalars, param, data.piece(index, step), states, coded=coded)
    found = {"param": param} | dict(zip(rule.states, states, strict=True))
    if remainder is not None:
        found[REMAINDER] = remainder
    if coded is not None and coded.exponents is not None:
        found[EXPONENTS] = _of_elements(coded.exponents, len(param))
    return found


def _of_elements(exponents: Tensor, numel: int) -> Tensor:
    """Exponents of blocks as those of each element, ``[numel, states]``."""
    return exponents.repeat_interleave(codes.BLOCK, dim=0)[:numel]


def _held(optimizer: Optimizer, param: Tensor, name: str, span: Span) -> Tensor:
    """A span of a parameter or of one of its states, flat; exponents by element."""
    tensor: Tensor = param if name == "param" else optimizer.state[param][name]
    _, start, stop = span
    if name == EXPONENTS:
        blocks = slice(start // codes.BLOCK, codes.num_blocks(stop))
        return _of_elements(tensor[blocks], stop - start)
    return tensor.view(-1)[start:stop]


def _places(actual: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors differ in a bit: unlike ``==`` this tells -0.0 from 0.0."""
    bits = (tensor.view(_BITS[tensor.dtype.itemsize]) for tensor in (actual, expected))
    differ = torch.ne(*bits)
    return (differ.any(1) if differ.ndim > 1 else differ).nonzero()


def _locate(piece: Piece, place: int, shapes: Sequence[Shape]) -> str:
    """The tensor and element that are at ``place`` of a piece."""
    for tensor, start, stop in piece:
        if place < stop - start:
            return f"tensor {tensor} of shape {shapes[tensor]}, element {start + place:,}"
        place -= stop - start
    raise IndexError(place)
