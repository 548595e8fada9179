"""What a backend is: a way to run one rule's step over a batch of tensors."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch


class Status(NamedTuple):
    """Whether a backend works on this machine and, where not, why and what to do."""

    available: bool
    reason: str = ""
    remedy: str = ""


class Backend(Protocol):
    """Runs batches of a tensor table (csrc/bindings/table.h), one device and dtype at a time."""

    name: str

    @property
    def chunk_size(self) -> int:
        """Elements in the unit of work that the table counts for this backend."""

    def status(self) -> Status:
        """Whether the backend works on this machine."""

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why parameters of this device and dtype cannot be served; None where they can."""

    def run(
        self, rule: str, table: Any, index: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Steps all tensors of batch ``index`` of ``table``."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name that the compiled engines know a dtype by: ``"float32"`` for torch.float32."""
    return str(dtype).removeprefix("torch.")
