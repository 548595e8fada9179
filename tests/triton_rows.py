"""Rows of the table for tests of the Triton step: tensors between guard zones, and their twins."""

from __future__ import annotations

import array
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adamod_fused.reference import AdaMod, stepped

# Distinct hyperparameters in one launch, none of them the defaults.
HYPERPARAMETERS = [
    dict(zip(("lr", "betas", "beta3", "eps", "weight_decay", "variant"), values, strict=True))
    for values in [
        (3e-3, (0.9, 0.99), 0.999, 1e-6, 0.1, "paper"),
        (2e-2, (0.8, 0.999), 0.0, 1e-8, 0.0, "paper"),
        (1e-4, (0.95, 0.98), 0.9999, 1e-3, 1.5, "released"),
        (0.5, (0.0, 0.5), 0.9, 0.0, 1e-2, "released"),
    ]
]


def float_bits(x: Tensor) -> Tensor:
    """The bits of ``x``, every NaN made the same one; integers as they are."""
    if not x.is_floating_point():
        return x
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


GUARD = 2048  # elements on either side: more than a block, so that a stray one stays inside


class Guarded:
    """A tensor ``offset`` elements past a 64-byte boundary, between guard zones."""

    def __init__(self, values: Tensor, offset: int, device: str = "cpu"):
        self.numel = values.numel()
        self.guard = 12345.0 if values.is_floating_point() else 91
        room = (self.numel + 2 * GUARD + 32,)
        storage = torch.full(room, self.guard, dtype=values.dtype, device=device)
        to_boundary = -storage.data_ptr() % 64 // values.element_size()
        begin = to_boundary + GUARD + offset
        self.tensor = storage[begin : begin + self.numel]
        self.around = [storage[:begin], storage[begin + self.numel :]]
        self.tensor.copy_(values)

    def assert_equal(self, expected: Tensor, what: str):
        actual = self.tensor.cpu()
        different = (float_bits(actual) != float_bits(expected)).nonzero().flatten()
        assert not len(different), (
            f"{what}: {len(different)} of {self.numel} differ, first at {different[0]}: "
            f"{actual[different[0]]} != {expected[different[0]]}"
        )
        assert all((zone == self.guard).all() for zone in self.around), f"{what}: written outside"


def sample(numel: int, generator: torch.Generator) -> Tensor:
    """Values over the whole range that a squared gradient can have, subnormals and zeros too."""
    exponents = torch.randint(-46, 6, (numel,), generator=generator)
    values = torch.randn(numel, generator=generator) * 10.0**exponents
    return torch.where(torch.rand(numel, generator=generator) < 0.1, torch.zeros(()), values)


@dataclass
class Row:
    """One tensor of the table, and what the reference makes of it."""

    streams: list[Guarded]  # param, grad, states
    expected: list[Tensor]
    scalars: int


def make_row(numel, dtype, offsets, scalars, generator, num_states=3, device: str = "cpu") -> Row:
    param, grad = (sample(numel, generator).to(dtype) for _ in range(2))
    states = [sample(numel, generator).abs() for _ in range(num_states)]
    values = [param, grad, *states]
    streams = [Guarded(v, offset, device) for v, offset in zip(values, offsets, strict=True)]
    return Row(streams, values, scalars)


def upload(words: array.array, scalars: Sequence[tuple[float, ...]], device: torch.device):
    """The table and the scalars on the device, from the bytes that their owner would hand over."""
    from adamod_fused.triton_kernels import engine

    floats = array.array("f", itertools.chain.from_iterable(scalars))
    matrices = [
        engine.Matrix(words, engine.ROW_SIZE.value),
        engine.Matrix(floats, len(scalars[0]), torch.float32),
    ]
    return engine.upload(matrices, device)


def launch(
    rule: str,
    rows: list[Row],
    scalars: Sequence[tuple[float, ...]],
    control: Tensor | None = None,
) -> None:
    """One step."""
    from adamod_fused.triton_kernels import engine

    words, num_chunks = array.array("q"), 0
    for row in rows:
        addresses = [stream.tensor.data_ptr() for stream in row.streams]
        numel = row.streams[0].numel
        words.extend(addresses + [0] * (5 - len(addresses)) + [numel, num_chunks, row.scalars])
        num_chunks += -(-numel // engine.CHUNK_SIZE)
    param = rows[0].streams[0].tensor
    table = upload(words, scalars, param.device)
    engine.step(rule, param.dtype, *table, num_chunks, control)


def rounded(scalars: AdaMod.Scalars) -> AdaMod.Scalars:
    return AdaMod.Scalars(*torch.tensor(scalars, dtype=torch.float32).tolist())


def update_expected(row: Row, scalars: AdaMod.Scalars, grad_scale: float = 1.0) -> None:
    param, grad, *states = row.expected
    scaled = grad.float() * torch.tensor(grad_scale)
    new_param, *new_states = stepped(AdaMod, scalars, param.float(), scaled, *states)
    row.expected = [new_param.to(param.dtype), grad, *new_states]


def check(rows: list[Row]) -> None:
    for number, row in enumerate(rows):
        names = ("param", "grad", *AdaMod.states)[: len(row.streams)]
        for name, stream, expected in zip(names, row.streams, row.expected, strict=True):
            stream.assert_equal(expected, f"row {number} of {stream.numel} elements, {name}")
