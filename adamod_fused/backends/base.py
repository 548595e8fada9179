"""What a backend is: a way to run one rule's step over a batch of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..codes import Values


class Status(NamedTuple):
    """Whether a backend works on this machine and, where not, why and what to do."""

    available: bool
    reason: str = ""
    remedy: str = ""


class Backend(Protocol):
    """Runs batches of a tensor table (csrc/bindings/table.h), one device and dtype at a time."""

    name: str
    counts_on_device: bool
    """Whether step counts may live on the tensors' device, which then prepares scalars itself."""
    is_uninterrupted: bool
    """Whether a launch runs no Python code, in which a signal could end it half-way."""

    @property
    def chunk_size(self) -> int:
        """Elements in the unit of work that the table counts for this backend."""

    def status(self) -> Status:
        """Whether the backend works on this machine."""

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why parameters of this device and dtype cannot be served; None where they can."""

    def zeros_like(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        """A new state for a parameter."""

    def launcher(
        self,
        rule: str,
        table: Any,
        index: int,
        device: torch.device,
        dtype: torch.dtype,
        control: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Callable[[], None]:
        """A function that steps all tensors of batch ``index`` of ``table``.

        ``control``, float32 ``[2]`` on ``device``: gradients are multiplied by the first; if the
        second is not 0, nothing is done. None is (1, 0). Where the host counts steps, the second
        is 0: the host has looked. ``observed``, zeros of int64 on ``device``: the step is looked
        at afterwards, as ``observed.slots_of`` numbers its segments.
        """

    def sum_squares(self, grads: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Of all elements of a ``GradTable`` (csrc/bindings/table.h): 0-dim float64 there."""

    def decode(
        self,
        kinds: Sequence[Values],
        coded: Sequence[Tensor],
        exponents: Tensor,
        values: Sequence[Tensor],
    ) -> None:
        """Writes what codes of a parameter's states stand for; all as ``coding.decode`` has it."""

    def encode(
        self,
        kinds: Sequence[Values],
        values: Sequence[Tensor],
        coded: Sequence[Tensor],
        exponents: Tensor,
    ) -> None:
        """Writes the codes of values, float32 or all bfloat16, as ``coding.encode`` has it."""


def refusal(
    device: torch.device, dtype: torch.dtype, device_type: str, dtypes: Sequence[torch.dtype]
) -> str | None:
    """Why a backend that serves ``dtypes`` on ``device_type`` refuses a parameter, if it does."""
    if device.type != device_type:
        return f"it serves tensors on {device_type}, not on {device}"
    if dtype not in dtypes:
        return f"it does not serve {dtype}"
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """The name that the compiled engines know a dtype by: ``"float32"`` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def addresses_of(
    kinds: Sequence[Values], coded: Sequence[Tensor], exponents: Tensor, values: Sequence[Tensor]
) -> tuple[list[int], int, list[int], int, list[int], int]:
    """The states of a parameter as the compiled engines take them."""
    return (
        [kind.value for kind in kinds],
        coded[0].dtype.itemsize,
        [c.data_ptr() for c in coded],
        exponents.data_ptr(),
        [value.data_ptr() for value in values],
        len(coded[0]),
    )
