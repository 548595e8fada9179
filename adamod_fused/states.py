"""A parameter's entries in an optimizer's state as a plan needs them: made, moved, converted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import coded_states, fake, validation
from .coded_states import in_formats, new_exponents, state_dtype
from .dtensor import local, wrapped
from .formats import EXPONENTS, REMAINDER, Formats
from .layout import laid_out
from .members import Batch, Member


def check(
    rule: Any,
    param: Tensor,
    grad: Tensor | None,
    entries: dict[str, Any] | None,
    who: str,
    stored: Formats,
) -> None:
    """Raises where a parameter cannot be stepped with its gradient and its entries, if any."""
    validation.check_param(param, who)
    if grad is not None:
        validation.check_grad(param, grad, who)
        validation.check_writable(param, who)
        fake.check_mode(param, who)
    if entries is None:
        return
    coded_states.check(param, entries, rule.states, who, stored)
    if grad is not None:
        for name, tensor in coded_states.written(entries, rule.states):
            validation.check_writable(tensor, f"{name} of {who}")


@torch.inference_mode(False)
@torch.no_grad()  # the mode above turns gradients on
def complete(
    rule: Any, member: Member, batch: Batch | None, entries: dict[str, Any]
) -> dict[str, Any]:
    """``entries`` as the step of a parameter needs them; all new where there are none.

    ``batch`` is the member's; None where the reference steps it. None of the new tensors is one
    of inference mode, which a step outside of that mode could not write.
    """
    with fake.mode_of(member.param):
        return _complete(rule, member, batch, entries)


def _complete(
    rule: Any, member: Member, batch: Batch | None, entries: dict[str, Any]
) -> dict[str, Any]:
    on_device = batch is not None and batch.counts_on_device
    device = member.param.device if on_device else torch.device("cpu")
    if not entries:
        return _new(rule, member, batch, device)
    param, formats = member.param, member.formats
    coded = EXPONENTS in entries or REMAINDER in entries
    if batch is None and formats.are_plain and not coded:
        return entries  # the reference steps any layout and counts where the count is
    step = entries["step"].to(device, non_blocking=device.type != "cpu")
    others = {
        name: value
        for name, value in entries.items()
        if name not in (*rule.states, EXPONENTS, REMAINDER)
    }
    layout = member.layout or local(entries[rule.states[0]]).stride()
    return others | {"step": step} | in_formats(rule, param, entries, formats, layout)


def fit(rule: Any, member: Member, entries: dict[str, Any]) -> bool:
    """Whether a parameter that the reference steps has states in its formats and layout."""
    formats = member.formats
    there = (EXPONENTS in entries, REMAINDER in entries)
    if there != (formats.codes_states, formats.splits_weights):
        return False
    if formats.are_plain:
        return True
    dtype = state_dtype(member.param, formats)
    tensors = [entries[name] for name in rule.states]
    tensors_fit = all(t.dtype == dtype for t in tensors)
    tensors += [entries[REMAINDER]] if formats.splits_weights else []
    return tensors_fit and all(local(t).stride() == member.layout for t in tensors)


def _new(rule: Any, member: Member, batch: Batch | None, device: torch.device) -> dict[str, Any]:
    param, formats = member.param, member.formats

    def zeros(dtype: torch.dtype) -> Tensor:
        if batch is None and formats.are_plain:
            return torch.zeros_like(param, dtype=dtype)
        shard = local(param)
        made = (
            torch.zeros_like(shard, dtype=dtype)
            if batch is None
            else batch.backend.zeros_like(shard, dtype)
        )
        return wrapped(laid_out(made, member.layout), param)

    # Named, because torch.set_default_device may say otherwise.
    entries: dict[str, Any] = {"step": torch.zeros((), dtype=torch.float32, device=device)}
    dtype = state_dtype(param, formats)
    entries |= {name: zeros(dtype) for name in rule.states}
    if formats.codes_states:
        entries[EXPONENTS] = new_exponents(param, len(rule.states))
    if formats.splits_weights:
        entries[REMAINDER] = zeros(torch.int16)
    return entries
