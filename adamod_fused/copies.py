"""Copies that state dicts hold in place of the optimizer's own tensors, and writes to them.

A state dict of floats holds the optimizer's own tensors, so that writing to them in place, as
``torch.distributed.checkpoint.load`` does, restores the optimizer. The values of codes are copies:
what is written to them reaches the optimizer by ``load_state_dict`` alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .dtensor import local
from .fake import has_values


class _Copy(NamedTuple):
    name: str
    alive: weakref.ref[Tensor]
    witness: Tensor
    """Has no elements, and the version counter of the copy."""
    version: int

    @property
    def is_written(self) -> bool:
        return self.witness._version != self.version


class Copies:
    """The copies in all state dicts since the last load."""

    def __init__(self) -> None:
        self._copies: list[_Copy] = []

    def __bool__(self) -> bool:
        return bool(self._copies)

    def add(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Takes down the copies of one more state dict, by name."""
        kept = [copy for copy in self._copies if copy.is_written or copy.alive() is not None]
        made = [_copy(name, local(tensor)) for name, tensor in named if _has_version(local(tensor))]
        self._copies = kept + made

    def check(self) -> None:
        """Raises where a copy was written since it was made.

        Raises:
            RuntimeError: names it, and says how to load it.
        """
        written = next((copy for copy in self._copies if copy.is_written), None)
        if written is not None:
            raise RuntimeError(
                f"{written.name} was written in place in a state dict, where it is a copy: "
                "quantized states are codes, a state dict holds their values, and nothing of them "
                "was restored. Give that state dict to optimizer.load_state_dict(), or to "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict(); to go on "
                "without it, call optimizer.load_state_dict(optimizer.state_dict())"
            )
        # Each step looks at one of a dict that is kept: what loads in place writes to all of them.
        self._copies = [copy for copy in self._copies if copy.alive() is not None][-1:]


def _has_version(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and has_values(tensor) and not tensor.is_inference()


def _copy(name: str, tensor: Tensor) -> _Copy:
    witness = tensor.detach()
    # `detach` shares memory and version counter, and the assignment replaces the memory alone: a
    # dict that its owner drops frees its tensors, and still it is known whether they were written.
    witness.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return _Copy(name, weakref.ref(tensor), witness, tensor._version)
