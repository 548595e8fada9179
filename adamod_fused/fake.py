"""Tensors that have a shape and no values: those of ``FakeTensorMode`` and those on meta.

Tools that plan memory step such tensors: their states are made, and nothing else is done. In
``FakeTensorMode`` no real tensor may be written either.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .dtensor import local

_FAKE = torch._C._TorchDispatchModeKey.FAKE  # type: ignore[attr-defined, unused-ignore]


def in_fake_mode() -> bool:
    """Whether ``FakeTensorMode`` is on: torch's operators change no real tensor then."""
    return torch._C._get_dispatch_mode(_FAKE) is not None  # type: ignore[attr-defined, unused-ignore]


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor, of a DTensor its local one, was made by ``FakeTensorMode``."""
    return isinstance(local(tensor), FakeTensor)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values and not only a shape."""
    return not (tensor.is_meta or is_fake(tensor))


def mode_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """The mode that made ``tensor``, if it is fake: operators mix only what one mode has made."""
    shard = local(tensor)
    return shard.fake_mode if isinstance(shard, FakeTensor) else nullcontext()


def check_mode(param: Tensor, who: str) -> None:
    """Raises where a step would write a real tensor in ``FakeTensorMode``."""
    if in_fake_mode() and has_values(param):
        raise RuntimeError(
            f"{who} is a real tensor, and FakeTensorMode is on, in which no real tensor is "
            "written; make the model in that mode, or step outside of it"
        )


def check_values(param: Tensor, other: Tensor, who: str) -> None:
    """Raises where a parameter has values and a tensor that belongs to it has none."""
    if has_values(param) and not has_values(other):
        kind = "fake" if is_fake(other) else "on meta"
        raise ValueError(
            f"{who} is {kind} and has no values, and the parameter has; load a state_dict of real "
            "tensors, or start without one"
        )
