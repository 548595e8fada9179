"""DTensors, as FSDP2 and tensor parallelism make them: each rank steps its own local tensor.

Every rule is elementwise, so a shard or a replica needs nothing from other ranks, as long as
parameter, gradient and states are cut alike. torch's own operators do the same with each DTensor,
at some tens of microseconds an operator; kernels are given the local tensors instead.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from types import MemberDescriptorType
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)  # most are, and are asked about often


def dtensor_type() -> type[Any] | None:
    """``DTensor``, where something has imported it: where nothing has, no tensor is one."""
    found = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return found if found is not None and _has_slots(found) else None


@functools.cache
def _has_slots(found: type[Any]) -> bool:
    """Whether what is read of a DTensor here and by the compiled table is where torch has it."""
    attributes = (getattr(found, name, None) for name in ("_local_tensor", "_spec"))
    return all(isinstance(attribute, MemberDescriptorType) for attribute in attributes)


@functools.cache
def sharding_fields() -> tuple[str, ...]:
    """The attributes of a DTensor's ``_spec`` that say which of its elements a rank has."""
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    known = {field.name for field in dataclasses.fields(DTensorSpec)}
    # The order in which mesh dimensions cut a tensor's has no public name, and torch 2.6 has none.
    return tuple(name for name in ("mesh", "placements", "shard_order") if name in known)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor itself: subclasses may compute in their own way."""
    kind = type(tensor)
    return kind not in _PLAIN and kind is dtensor_type()


def is_partial(tensor: Tensor) -> bool:
    """Whether ranks hold summands of a DTensor's elements, not elements."""
    return is_dtensor(tensor) and any(
        placement.is_partial()
        for placement in tensor.placements  # type: ignore[attr-defined]
    )


def local(tensor: Tensor) -> Tensor:
    """A DTensor's local tensor, waited for where a collective may still write it; others as is."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():  # else autograd would have its part in it
        shard = tensor.to_local()  # type: ignore[attr-defined]
    collectives = sys.modules.get("torch.distributed._functional_collectives")
    if collectives is not None and isinstance(shard, collectives.AsyncCollectiveTensor):
        return shard.wait()
    return shard


def first_index(tensor: Tensor, strides: tuple[int, ...]) -> int:
    """The place that a DTensor's first local element has in the whole tensor's memory.

    0 where the local elements, which lie as ``strides`` say, are no run of the whole tensor's.
    """
    if not is_dtensor(tensor):
        return 0
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    cuts = [(dim, p) for dim, p in enumerate(placements) if not p.is_replicate()]
    in_rows = torch.empty(local(tensor).shape, dtype=torch.float32, device="meta").stride()
    coordinate = mesh.get_coordinate()
    if len(cuts) != 1 or strides != in_rows or coordinate is None:
        return 0
    mesh_dim, placement = cuts[0]
    if type(placement) is not sys.modules["torch.distributed.tensor"].Shard or placement.dim != 0:
        return 0
    rows = -(-tensor.shape[0] // mesh.size(mesh_dim))
    first_row = min(rows * coordinate[mesh_dim], tensor.shape[0])
    return int(first_row * tensor.shape[1:].numel())


def same_mesh(param: Tensor, other: Tensor) -> bool:
    """Whether both are DTensors of one mesh, or neither is one."""
    if not is_dtensor(param):
        return not is_dtensor(other)
    return is_dtensor(other) and param.device_mesh == other.device_mesh  # type: ignore[attr-defined]


def same_sharding(param: Tensor, other: Tensor) -> bool:
    """Whether each rank has the same elements of both, which are of one shape."""
    if not is_dtensor(param) or not is_dtensor(other):
        return is_dtensor(param) == is_dtensor(other)
    specs = param._spec, other._spec  # type: ignore[attr-defined]
    pairs = [tuple(getattr(spec, name) for spec in specs) for name in sharding_fields()]
    return all(a is None or b is None or a == b for a, b in pairs)


def wrapped(shard: Tensor, param: Tensor) -> Tensor:
    """``shard`` as the local tensor of a DTensor that is cut as ``param``; itself for others."""
    if not is_dtensor(param):
        return shard
    # Not DTensor.from_local, which cannot be told the order in which mesh dimensions cut.
    tensor = torch.empty_like(param, dtype=shard.dtype, requires_grad=False)
    tensor._local_tensor = shard  # type: ignore[attr-defined]
    return tensor


def shards(tensor: Tensor) -> Any:
    """How a DTensor's elements are spread over ranks: equal where one sum serves. None: not."""
    if not is_dtensor(tensor):
        return None
    placements = tensor.placements  # type: ignore[attr-defined]
    dims = tuple(dim for dim, placement in enumerate(placements) if placement.is_shard())
    return tensor.device_mesh, dims  # type: ignore[attr-defined]


def summed_over_shards(value: Tensor, tensor: Tensor) -> Tensor:
    """The sum of ``value`` over all ranks that hold other elements of ``tensor``; a collective."""
    if is_dtensor(tensor):
        mesh, dims = shards(tensor)
        for dim in dims:
            torch.distributed.all_reduce(value, group=mesh.get_group(dim))
    return value


@torch.no_grad()
def redistributed(tensor: Tensor, param: Tensor) -> Tensor:
    """A DTensor cut as ``param``: ``tensor`` itself or, by a collective of all ranks, another."""
    if same_sharding(param, tensor):
        return tensor
    return tensor.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
