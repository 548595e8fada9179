"""What a plan knows of each parameter, and of those that one launch serves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import Backend

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


class Member(NamedTuple):
    """A parameter of the plan; ``label`` names it in errors, ``layout``: its states' strides.

    The strides of a DTensor are those of its local tensors.
    """

    param: Tensor
    group: int
    label: str
    batch: int
    layout: tuple[int, ...]


class ReferenceStep(NamedTuple):
    """What the reference needs to step one parameter."""

    group: int
    param: Tensor
    grad: Tensor
    states: dict[str, Tensor]
