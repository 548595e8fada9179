"""What a step needs to be true of its input, and the errors that say what is not.

Each check names the tensor, the value and the remedy, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dtensor import is_dtensor, is_partial, local, same_mesh, same_sharding
from .fake import check_values, has_values
from .overlap import overlapping, overlaps_itself, span
from .reference import COMPUTE_DTYPES

MAX_STEP = 2.0**24
"""Where a float32 step count stops: the next whole number is beyond its 24 bits."""


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises where ``value`` is no finite number in [low, high).

    Of a tensor on a device only the kind is looked at: its value would have to be waited for.
    """
    if isinstance(value, Tensor) and value.device.type != "cpu":
        if value.numel() != 1 or value.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name} on {value.device} must be a 0-dim tensor of float32 or float64, got shape "
                f"{tuple(value.shape)} and {value.dtype}; make it with torch.tensor(..., "
                "dtype=torch.float32)"
            )
        return
    try:
        if isinstance(value, (str, bytes)):  # float() would read them, arithmetic does not
            raise TypeError
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {shown(value)}") from None
    if not (low <= number < high):
        bounds = f"lie in [{low:g}, {high:g})" if high < math.inf else f"be finite and >= {low:g}"
        raise ValueError(f"{name} must {bounds}, got {shown(value)}")


def shown(value: Any) -> str:
    """How errors show a value: as Python does, if that can be done and is not too long."""
    if isinstance(value, Tensor) and value.numel() != 1:  # whose memory may be freed
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or of too many digits
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises where ``value`` is none of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {shown(value)}")


def name_of(names: Sequence[str] | None, param_index: int) -> str | None:
    """A parameter's name; None where its group has no names, or none of what was appended."""
    return names[param_index] if names and param_index < len(names) else None


def label(group_index: int, param_index: int, group: dict[str, Any]) -> str:
    """How errors name a parameter: index, group, and name where the optimizer was given names."""
    name = name_of(group.get("param_names"), param_index)
    name = "" if name is None else f" ({name!r})"
    return f"parameter {param_index} of group {group_index}{name}"


def check_distinct(groups: Sequence[dict[str, Any]]) -> None:
    """Raises where a parameter is listed twice: one step would move it twice."""
    seen: dict[Tensor, str] = {}
    for group_index, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            who = label(group_index, i, group)
            if param in seen:
                raise ValueError(f"{who} is {seen[param]} again; list each parameter once")
            seen[param] = who


def check_disjoint(
    written: Iterable[tuple[Tensor, str]],
    read: Iterable[tuple[Tensor, str]] = (),
    *,
    remedy: str = "give each its own, or tie parameters by using the same Parameter in both places",
) -> None:
    """Raises where something that a step writes shares memory with what it writes or reads.

    Threads would race, and a gradient would change while it is read.
    """
    for one, other, is_read in overlapping(written, read):
        if is_read:
            raise ValueError(
                f"{other} shares memory with {one}, which the step writes; give the gradient its "
                "own memory, as grad.clone() has"
            )
        raise ValueError(f"{one} and {other} share memory; {remedy}")


def check_param(param: Tensor, who: str) -> None:
    """Raises where ``param`` cannot be optimized at all."""
    if param.dtype.is_complex:
        raise TypeError(
            f"{who} is complex ({param.dtype}), which is not served; "
            "optimize torch.view_as_real(param) instead"
        )
    if param.dtype not in COMPUTE_DTYPES:
        served = ", ".join(str(dtype) for dtype in COMPUTE_DTYPES)
        raise TypeError(
            f"{who} has dtype {param.dtype}; only {served} are served: "
            "convert it, or leave it out of the optimizer"
        )
    if param.layout is not torch.strided:
        raise TypeError(f"{who} has layout {param.layout}; convert it with param.to_dense()")
    check_memory(param, who)
    if is_partial(param):
        raise ValueError(
            f"{who} is {describe(param)}: a Partial parameter has no elements of its own to step; "
            "redistribute it to Shard or Replicate placements before making the optimizer"
        )
    shard = local(param)
    if overlaps_itself(shard):
        raise ValueError(
            f"{who} has elements that share memory (shape {tuple(shard.shape)}, strides "
            f"{shard.stride()}); optimize param.contiguous() instead"
        )
    if shard.is_neg():
        raise ValueError(f"{who} is a lazily negated view; optimize param.resolve_neg() instead")


def check_memory(tensor: Tensor, who: str) -> None:
    """Raises where a tensor has elements and no memory that holds them."""
    tensor = local(tensor)
    is_held = tensor.device.type != "meta" and is_plain(tensor)
    if not is_held or tensor.numel() == 0:
        return
    if tensor.data_ptr() == 0:
        raise ValueError(
            f"{who} has {tensor.numel()} elements and no memory: its storage was freed "
            "(untyped_storage().resize_(0)); give it back before the step"
        )
    storage = tensor.untyped_storage()
    begin, end = span(tensor)
    if end - begin > storage.nbytes() - tensor.storage_offset() * tensor.element_size():
        raise ValueError(
            f"{who} has {tensor.numel()} elements and a storage of {storage.nbytes()} bytes, which "
            "does not hold them: it was resized; resize it back before the step"
        )


def check_writable(tensor: Tensor, who: str) -> None:
    """Raises where torch lets nobody write to ``tensor``: one of inference mode, outside of it."""
    made_there = tensor.is_inference() or local(tensor).is_inference()
    if made_there and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{who} is an inference tensor: it was made under torch.inference_mode() and cannot be "
            "written outside of it; make it outside, or replace it by a clone() made outside"
        )


def check_elements(shard: Tensor, who: str) -> None:
    """Raises where elements of one tensor share memory."""
    if overlaps_itself(shard):
        raise ValueError(
            f"{who} has elements that share memory (strides {shard.stride()}); give its "
            "contiguous() instead"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements lie at its address: not so for DTensor and its like."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def describe(tensor: Tensor) -> str:
    """How errors name what kind of tensor one is."""
    if is_dtensor(tensor):
        cut = f"{tensor.placements} on {tensor.device_mesh}"  # type: ignore[attr-defined]
        return f"a DTensor {cut}, locally {describe(local(tensor))} {tuple(local(tensor).shape)}"
    return "a plain tensor" if is_plain(tensor) else f"a {type(tensor).__name__}"


def check_grad(param: Tensor, grad: Tensor, who: str) -> None:
    """Raises where ``grad`` is no gradient that ``param`` can be stepped with."""
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"the gradient of {who} has layout {grad.layout}; sparse gradients are not supported: "
            "use sparse=False in the layer that makes it, or grad.to_dense()"
        )
    is_odd = is_plain(local(param)) and not is_plain(local(grad))
    if is_dtensor(param) != is_dtensor(grad) or is_odd:
        raise TypeError(
            f"the gradient of {who} is {describe(grad)}, the parameter {describe(param)}; give "
            "both the same type"
        )
    # Other placements are redistributed: some layers leave a gradient Partial.
    if not same_mesh(param, grad):
        raise ValueError(
            f"the gradient of {who} is {describe(grad)}, the parameter {describe(param)}; put "
            "both on one mesh"
        )
    if grad.dtype != param.dtype:
        raise TypeError(
            f"the gradient of {who} has dtype {grad.dtype}, the parameter {param.dtype}; "
            "convert the gradient with grad.to(param.dtype)"
        )
    if grad.device != param.device:
        raise ValueError(
            f"the gradient of {who} is on {grad.device}, the parameter on {param.device}; "
            "move the gradient with grad.to(param.device)"
        )
    if grad.shape != param.shape:
        raise ValueError(
            f"the gradient of {who} has shape {tuple(grad.shape)}, the parameter "
            f"{tuple(param.shape)}; set param.grad = None after changing a parameter's shape"
        )
    check_local_shape(param, grad, f"the gradient of {who}")
    check_memory(grad, f"the gradient of {who}")


def check_sharding(param: Tensor, other: Tensor, who: str) -> None:
    """Raises where ranks have other elements of ``other`` than of ``param``."""
    if not same_sharding(param, other):
        raise ValueError(
            f"{who} is {describe(other)}, the parameter {describe(param)}; cut both alike"
        )


def check_local_shape(param: Tensor, other: Tensor, who: str) -> None:
    """Raises where DTensors of one sharding have local tensors of different shapes."""
    if not is_dtensor(param) or not same_sharding(param, other):
        return
    if local(param).shape != local(other).shape:
        raise ValueError(
            f"{who} is {describe(other)}, the parameter {describe(param)}; cut both at the same "
            "places, as torch.distributed.tensor.distribute_tensor does"
        )


def check_state_device(param: Tensor, state: Tensor, who: str) -> None:
    """Raises where a parameter was moved and its states were not."""
    if state.device != param.device:
        raise ValueError(
            f"{who} is on {state.device}, the parameter on {param.device}; move the model before "
            "the first step, or reload the optimizer's state_dict after moving it"
        )


def check_states(
    param: Tensor,
    states: dict[str, Any],
    names: Sequence[str],
    dtypes: Sequence[torch.dtype],
    who: str,
) -> None:
    """Raises where a parameter's states are not those that a step left or load_state_dict made.

    ``dtypes`` are those that they may have, first the one that a step leaves.
    """
    check_state_entries(param, states, names, who, dtypes[0])
    for name in names:
        state = states[name]
        check_state_device(param, state, f"{name} of {who}")
        if state.dtype not in dtypes or state.layout is not torch.strided:
            raise TypeError(
                f"{name} of {who} has dtype {state.dtype} and layout {state.layout}; a parameter "
                f"of dtype {param.dtype} has strided {dtypes[0]} states"
            )
        check_values(param, state, f"{name} of {who}")
        check_memory(state, f"{name} of {who}")
        check_elements(local(state), f"{name} of {who}")
    step = states["step"]
    if not (
        isinstance(step, Tensor)
        and step.dtype is torch.float32
        and step.device in (torch.device("cpu"), param.device)
        and step.ndim == 0
    ):
        raise TypeError(
            f"step of {who} must be a 0-dim float32 tensor on the CPU or on the parameter's "
            f"device, got {shown(step)}"
        )
    check_values(param, step, f"step of {who}")


def check_state_entries(
    param: Tensor,
    states: dict[str, Any],
    names: Sequence[str],
    who: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Raises where an entry is missing or has another shape than the parameter.

    States are of floating point or of ``dtype``.
    """
    if not isinstance(states, dict):
        raise TypeError(f"the state of {who} must be a dict, got {shown(states)}")
    missing = [name for name in ("step", *names) if name not in states]
    if missing:
        raise ValueError(
            f"the state of {who} lacks {', '.join(missing)} (it has "
            f"{', '.join(states) or 'nothing'}); load a state_dict that this optimizer saved, or "
            "start without one"
        )
    for name in names:
        if not isinstance(states[name], Tensor):
            raise TypeError(f"{name} of {who} must be a tensor, got {shown(states[name])}")
        if states[name].shape != param.shape:
            raise ValueError(
                f"{name} of {who} has shape {tuple(states[name].shape)}, the parameter "
                f"{tuple(param.shape)}; load a state_dict saved for the same model"
            )
        is_number = states[name].is_floating_point() or states[name].dtype == dtype
        if states[name].layout is not torch.strided or not is_number:
            raise TypeError(
                f"{name} of {who} has dtype {states[name].dtype} and layout "
                f"{states[name].layout}; a state is a strided tensor of floating point numbers"
            )
        if not same_sharding(param, states[name]):
            raise ValueError(
                f"{name} of {who} is {describe(states[name])}, the parameter {describe(param)}; "
                "load with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, "
                "which distributes states as their parameters are"
            )
        check_local_shape(param, states[name], f"{name} of {who}")
    step = states["step"]
    if isinstance(step, Tensor) and step.is_meta:
        raise ValueError(f"step of {who} is on meta and has no value; give it one on the CPU")
    is_known = not isinstance(step, Tensor) or (step.device.type == "cpu" and has_values(step))
    if isinstance(step, Tensor):
        check_memory(step, f"step of {who}")
    if is_known:  # else it has no value, or one that would be waited for
        check_range(f"step of {who}", step, 0.0, MAX_STEP + 1)
