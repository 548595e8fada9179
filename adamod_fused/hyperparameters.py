"""Hyperparameters: numbers of the host, or tensors of one element that a device reads itself."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class DeviceNumber:
    """A hyperparameter that a device reads at every step, of one element; equal where the same."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceNumber) and other.tensor is self.tensor


def as_numbers(value: Any) -> Any:
    """A hyperparameter as rules want it: a number, what a device reads itself, or a tuple of them.

    It may be given as a 0-dim tensor or array, and several as any sequence.
    """
    if isinstance(value, (float, int, str)):  # first, since the other questions take longer
        return value
    return tuple(map(_as_number, value)) if is_sequence(value) else _as_number(value)


def _as_number(value: Any) -> Any:
    if isinstance(value, (float, int, str)):
        return value
    if isinstance(value, Tensor):
        if value.device.type == "cuda":
            return DeviceNumber(value)
        value = value.detach()
        return value.item() if value.numel() == 1 else value.tolist()
    try:
        return float(value) if hasattr(value, "__float__") else value
    except (TypeError, ValueError):  # an array of several
        return value


def is_sequence(value: Any) -> bool:
    """Whether a value holds others in an order: a tuple, a list, an array of one dimension."""
    if isinstance(value, (tuple, list)):
        return True
    if isinstance(value, Tensor):
        # torch takes a tensor of one element as a number.
        return value.ndim == 1 and len(value) != 1
    kind = type(value)
    is_indexed = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    is_other = isinstance(value, (str, bytes, Mapping))
    return is_indexed and not is_other and getattr(value, "ndim", 1) == 1


def as_kept(value: Any) -> Any:
    """A hyperparameter as a param group keeps it: of a sequence, a tuple of Python's numbers."""
    if not is_sequence(value):
        return value
    numbers = (item if isinstance(item, Tensor) else _as_number(item) for item in value)
    return tuple(float(item) if isinstance(item, float) else item for item in numbers)


def as_integer(value: Any) -> Any:
    """A whole number of any type, such as numpy's, as an int; other values as they are."""
    try:
        return operator.index(value)
    except TypeError:
        return value


def copied(value: Any) -> Any:
    """A number as it is now, also one that a device may change later; nothing is waited for."""
    return DeviceNumber(value.tensor.detach().clone()) if isinstance(value, DeviceNumber) else value


def on_host(value: Any) -> Any:
    """A hyperparameter with all numbers on the host: those of a device are waited for."""
    if isinstance(value, DeviceNumber):
        return value.tensor.item()
    return tuple(map(on_host, value)) if isinstance(value, tuple) else value


def plain_numbers(value: Any) -> Any:
    """A hyperparameter as numbers, whatever holds them: those of a device are waited for."""
    return on_host(as_numbers(value))


def is_on_device(value: Any) -> bool:
    """Whether a hyperparameter holds a number that only a device knows."""
    if isinstance(value, DeviceNumber):
        return True
    return isinstance(value, tuple) and any(map(is_on_device, value))
