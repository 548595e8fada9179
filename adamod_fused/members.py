"""What a plan knows of each parameter, and of those that one launch serves."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import Backend
from .formats import PLAIN, Formats

# Members that no batch of the table holds; the numbers are those of csrc/bindings/table.h.
BY_REFERENCE = -1
DORMANT = -2  # neither gradient nor state so far


class Batch(NamedTuple):
    """Parameters that one launch serves: the key of a batch in the table."""

    backend: Backend
    device: torch.device
    dtype: torch.dtype
    counts_on_device: bool
    """Step counts are on ``device``, and so are tensors among hyperparameters: it reads them."""
    formats: Formats


class Member(NamedTuple):
    """A parameter of the plan; ``label`` names it in errors, ``layout``: its states' strides.

    The strides of a DTensor are those of its local tensors. ``first_index``, of its first element
    in the whole tensor, and ``key`` say which random bits are the parameter's. ``dtype`` and
    ``device`` are those that the parameter had when the plan was made: its ``.data`` may be set to
    others.
    """

    param: Tensor
    group: int
    label: str
    batch: int
    layout: tuple[int, ...] = ()
    formats: Formats = PLAIN
    first_index: int = 0
    key: int = 0
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @property
    def coding(self) -> tuple[bool, bool, int, int] | None:
        """What the table needs to know of a parameter whose formats are not plain."""
        if self.formats.are_plain:
            return None
        states, weights = self.formats.codes_states, self.formats.splits_weights
        return states, weights, self.first_index, self.key


class ReferenceStep(NamedTuple):
    """What the reference needs to step one parameter."""

    member: Member
    grad: Tensor
    states: dict[str, Any]
