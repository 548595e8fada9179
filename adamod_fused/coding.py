"""A parameter's states from codes to values and back, by the fastest backend that works here.

All give the bits of ``codes.py``, which serves where no other does. Tensors are flat, in the order
in which their elements lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import backends, codes, finite
from .codes import Values

VALUE_DTYPES = {torch.uint8: torch.bfloat16, torch.int16: torch.float32}
"""The narrowest dtype that holds all that codes stand for: one byte's have 7 bits of fraction."""

SLICE = codes.BLOCK << 14
"""Elements at a time by ``codes.py``, which takes 64 bits for each, several times over."""

LONG_SLICE = codes.BLOCK << 16
"""Elements at a time where a backend needs room for values alone: few waits for other threads."""

_HALF = 1 << 31  # random bits that round to the nearest


def decode(
    kinds: Sequence[Values], coded: Sequence[Tensor], exponents: Tensor, values: Sequence[Tensor]
) -> None:
    """Writes the values that codes stand for, exact.

    Args:
        kinds: of each state.
        coded: uint8 or int16 of each state, ``[numel]``.
        exponents: uint8, ``[codes.num_blocks(numel), len(coded)]``.
        values: of the dtype that ``VALUE_DTYPES`` has for that of ``coded``, ``[numel]``: written.

    Raises:
        ValueError: the tensors are not of these shapes and dtypes and on one device.
    """
    _check(kinds, coded, exponents, values)
    if any(value.dtype != VALUE_DTYPES[coded[0].dtype] for value in values):
        raise ValueError(
            f"codes of {coded[0].dtype} become {VALUE_DTYPES[coded[0].dtype]}, got "
            f"{[value.dtype for value in values]}"
        )
    backend = backends.coder(coded[0])
    if backend is not None:
        backend.decode(kinds, coded, exponents, values)
        return
    for part, blocks in _slices(len(coded[0]), SLICE):
        found = codes.decode(kinds, [c[part] for c in coded], exponents[blocks])
        for value, new in zip(values, found, strict=True):
            value[part] = new


def encode(
    kinds: Sequence[Values], values: Sequence[Tensor], coded: Sequence[Tensor], exponents: Tensor
) -> None:
    """Writes the codes of values, rounded to the nearest, and their exponents.

    Args:
        kinds: of each state.
        values: of each state, of any dtype of floating point, ``[numel]``.
        coded: uint8 or int16, ``[numel]``: written.
        exponents: uint8, ``[codes.num_blocks(numel), len(coded)]``: written.

    Raises:
        ValueError: the tensors are not of these shapes and on one device, or ``coded`` not of one
            dtype.
    """
    _check(kinds, coded, exponents, values)
    backend = backends.coder(coded[0])
    if backend is None:
        for part, blocks in _slices(len(coded[0]), SLICE):
            some, to = ([t[part] for t in tensors] for tensors in (values, coded))
            _encode_by_oracle(kinds, [v.float() for v in some], to, exponents[blocks])
    elif {value.dtype for value in values} in ({torch.float32}, {torch.bfloat16}):
        backend.encode(kinds, values, coded, exponents)
    else:
        for part, blocks in _slices(len(coded[0]), LONG_SLICE):
            some, to = ([t[part] for t in tensors] for tensors in (values, coded))
            backend.encode(kinds, [v.float() for v in some], to, exponents[blocks])


def _encode_by_oracle(
    kinds: Sequence[Values], values: Sequence[Tensor], coded: Sequence[Tensor], exponents: Tensor
) -> None:
    half = torch.full_like(values[0], _HALF, dtype=torch.int64)
    rounded, found = codes.encode(kinds, coded[0].dtype.itemsize, values, [half] * len(values))
    exponents.copy_(found)
    for tensor, new in zip(coded, rounded, strict=True):
        tensor.copy_(new)


def are_finite(kinds: Sequence[Values], coded: Sequence[Tensor], exponents: Tensor) -> list[Tensor]:
    """Whether all values of each state are finite: 0-dim, boolean. Takes what ``decode`` takes."""
    found = [torch.ones((), dtype=torch.bool, device=c.device) for c in coded]
    room = [torch.empty_like(c[:LONG_SLICE], dtype=VALUE_DTYPES[c.dtype]) for c in coded]
    for part, blocks in _slices(len(coded[0]), LONG_SLICE):
        some = [c[part] for c in coded]
        values = [r[: len(c)] for r, c in zip(room, some, strict=True)]
        decode(kinds, some, exponents[blocks], values)
        found = [f & finite.is_finite(v) for f, v in zip(found, values, strict=True)]
    return found


def _slices(numel: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Of ``size`` elements at most, and of the blocks that they are."""
    for start in range(0, numel, size):
        yield (
            slice(start, start + size),
            slice(start // codes.BLOCK, (start + size) // codes.BLOCK),
        )


def _check(
    kinds: Sequence[Values], coded: Sequence[Tensor], exponents: Tensor, values: Sequence[Tensor]
) -> None:
    """Raises where a backend would reach what is not these tensors' memory."""
    first = coded[0]
    shape = codes.num_blocks(len(first)), len(kinds)
    if (
        len(coded) != len(kinds)
        or len(values) != len(kinds)
        or any(c.dtype != first.dtype for c in coded)
        or any(t.shape != first.shape or t.device != first.device for t in (*coded, *values))
        or any(not t.is_contiguous() for t in (*coded, *values, exponents))
        or (exponents.dtype, exponents.shape) != (torch.uint8, shape)
        or exponents.device != first.device
    ):
        described = [f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (*coded, *values)]
        raise ValueError(
            f"states of one parameter have as many elements each, on one device, and exponents of "
            f"shape {shape} and dtype torch.uint8; got {', '.join(described)} and exponents "
            f"{exponents.dtype} {tuple(exponents.shape)} on {exponents.device}"
        )
