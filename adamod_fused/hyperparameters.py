"""Hyperparameters: numbers of the host, or tensors of one element that a device reads itself."""

from __future__ import annotations

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
    """Hyperparameters may be 0-dim tensors; rules want numbers, or what a device reads itself."""
    if isinstance(value, (float, int, str)):  # first, since asking for Tensor takes longest
        return value
    if isinstance(value, Tensor):
        if value.device.type == "cuda":
            return DeviceNumber(value)
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (tuple, list)):
        return tuple(as_numbers(item) for item in value)
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
