"""Rows whose states or weights are not plain floats, for tests of the Triton step, and their twins.

What is expected of them is the oracle's alone: adamod_fused/reference.py on the CPU.
"""

from __future__ import annotations

import array
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton_rows import Guarded, sample

from adamod_fused import codes
from adamod_fused.codes import Values
from adamod_fused.formats import STATE_FORMATS, Formats
from adamod_fused.reference import AdaMod, Coded, step_

FORMATS = [
    *((torch.float32, Formats(state, "plain")) for state in ("16bit", "8bit")),
    *((torch.float16, Formats(state, "plain")) for state in ("16bit", "8bit")),
    *((torch.bfloat16, Formats(state, "plain")) for state in ("16bit", "8bit")),
    *(
        (torch.bfloat16, Formats(state, weight))
        for state in STATE_FORMATS
        for weight in ("split", "stochastic")
    ),
]
"""All that one launch may be of: dtypes of params and grads, and formats."""


def label(value: Any) -> str | None:
    return "-".join(value) if isinstance(value, Formats) else str(value)


@dataclass
class CodedRow:
    """One tensor of the table, its streams by name, and what the oracle makes of each."""

    formats: Formats
    kinds: Sequence[Values]
    scalars: int
    first_index: int
    key: int
    streams: dict[str, Guarded] = field(default_factory=dict)
    expected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        return len(self.expected["param"])

    @property
    def states(self) -> list[str]:
        return [f"state {k}" for k in range(len(self.kinds))]

    def address(self, name: str) -> int:
        return self.streams[name].tensor.data_ptr() if name in self.streams else 0

    def random(self, step: int, stream: int) -> Tensor:
        indices = torch.arange(self.first_index, self.first_index + self.numel)
        return codes.random_bits(indices, self.key, step, stream)

    def set(self, name: str, values: Tensor) -> None:
        self.expected[name] = values
        self.streams[name].tensor.copy_(values)


def coded_states(
    row: CodedRow, values: Sequence[Tensor], step: int
) -> tuple[Sequence[Tensor], Tensor | None]:
    """What the states' values are stored as, and their exponents where they have any."""
    if row.formats.state == "fp32":
        return values, None
    random = [row.random(step, k) for k in range(len(values))]
    return codes.encode(row.kinds, STATE_FORMATS[row.formats.state], values, random)


def make_row(
    numel: int,
    dtype: torch.dtype,
    formats: Formats,
    number: int,
    generator: torch.Generator,
    *,
    offsets: dict[str, int] | None = None,
    kinds: Sequence[Values] = AdaMod.values,
    num_scalars: int = 1,
    first_index: int = 0,
    device: str = "cpu",
) -> CodedRow:
    """Row ``number``; ``offsets`` are in elements past a 64-byte boundary, by name of stream."""
    row = CodedRow(
        formats, kinds, number % num_scalars, first_index, codes.key_of(20191012, number)
    )
    weights = sample(numel, generator)
    row.expected = {"param": weights.to(dtype), "grad": sample(numel, generator).to(dtype)}
    if formats.weight == "split":
        row.expected["param"], row.expected["remainder"] = codes.split(weights)
    signs = [kind is Values.OF_BOTH_SIGNS for kind in kinds]
    values = [sample(numel, generator) for _ in kinds]
    values = [v if signed else v.abs() for v, signed in zip(values, signs, strict=True)]
    stored, exponents = coded_states(row, values, 12345)
    row.expected |= dict(zip(row.states, stored, strict=True))
    if exponents is not None:
        row.expected["exponents"] = exponents.flatten()
    for name, tensor in row.expected.items():
        row.streams[name] = Guarded(tensor, (offsets or {}).get(name, 0), device)
    return row


def launch(
    rule: str,
    rows: Sequence[CodedRow],
    scalars: Sequence[tuple[float, ...]],
    control: Tensor | None = None,
) -> None:
    """One step."""
    from adamod_fused.triton_kernels import coded, engine

    words, coded_words, num_chunks = array.array("q"), array.array("Q"), 0
    for row in rows:
        states = [row.address(name) for name in row.states] + [0] * (3 - len(row.states))
        words.extend([row.address("param"), row.address("grad"), *states])
        words.extend([row.numel, num_chunks, row.scalars])
        coded_words.extend([row.address("exponents"), row.address("remainder")])
        coded_words.extend([row.first_index, row.key])
        num_chunks += -(-row.numel // engine.CHUNK_SIZE)
    floats = array.array("f", itertools.chain.from_iterable(scalars))
    matrices = [
        engine.Matrix(words, engine.ROW_SIZE.value),
        engine.Matrix(coded_words, coded.CODED_SIZE.value),
        engine.Matrix(floats, len(scalars[0]), torch.float32),
    ]
    param, formats = rows[0].streams["param"].tensor, rows[0].formats
    table, coded_table, scalar_rows = engine.upload(matrices, param.device)
    engine.step(
        rule,
        param.dtype,
        table,
        scalar_rows,
        num_chunks,
        control,
        coded_table,
        formats.state,
        formats.weight,
    )


def decoded(row: CodedRow) -> list[Tensor]:
    """The states' values that the oracle now expects."""
    stored = [row.expected[name] for name in row.states]
    if row.formats.state == "fp32":
        return stored
    return codes.decode(row.kinds, stored, row.expected["exponents"].view(-1, len(row.kinds)))


def update_expected(
    row: CodedRow, scalars: Any, grad_scale: float = 1.0, rule: Any = AdaMod
) -> None:
    expected = row.expected
    exponents = expected.get("exponents")
    stored = Coded(
        None if exponents is None else exponents.view(-1, len(row.kinds)),
        expected.get("remainder"),
        row.first_index,
        row.key,
        row.formats.weight == "stochastic",
    )
    states = [expected[name] for name in row.states]
    step_(rule, scalars, expected["param"], expected["grad"], states, grad_scale, stored)


def check(rows: Sequence[CodedRow]) -> None:
    for number, row in enumerate(rows):
        for name, stream in row.streams.items():
            where = f"row {number} of {row.numel} elements, {name}"
            stream.assert_equal(row.expected[name], where)
