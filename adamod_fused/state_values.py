"""States read and written by value, whatever format they are in, and parameters replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from . import coded_states, formats, validation, value_checks
from .dtensor import local, wrapped
from .exclusion import Exclusion
from .formats import REMAINDER, STATE_FORMATS, Formats
from .layout import dense_strides
from .reference import COMPUTE_DTYPES

Entries = dict[str, Any]


class EditableStates(Optimizer):
    """What an optimizer of this package offers to code that edits its states."""

    rule: ClassVar[Any]
    """A rule of ``reference.py``."""
    _exclusion: Exclusion

    @contextmanager
    def state_values(self, param: Tensor) -> Iterator[dict[str, Tensor]]:
        """The states of a parameter by value, to read and to write, whatever their format.

        The values are copies. When the block ends, they are written into the optimizer's own
        tensors, each rounded to the nearest that the format holds; values that the block leaves
        alone keep their bits. When the block raises, nothing changes.

        Args:
            param: a parameter of this optimizer that has been stepped.

        Yields:
            A dict: the rule's states (for AdaMod ``exp_avg``, ``exp_avg_sq`` and ``exp_avg_lr``),
            float32, or float64 for float64 parameters, of the shape of ``param``; ``step``, a 0-dim
            float32 tensor; for split weights ``param_remainder``, int16: what a weight has beside
            its bfloat16 half, in units of its last float32 bit. Tensors may be written in place or
            replaced by others of the same shape. Of a DTensor they are DTensors.

        Raises:
            ValueError: the optimizer does not have ``param``, or no state for it; when the block
                ends: an entry is missing, unknown or of another shape, a state that is never
                negative is, ``step`` is no whole number.
            RuntimeError: when the block ends: a step, a load or another edit has changed the states
                since it began.
            TypeError: an entry is no tensor of the right kind.

        Example:
            >>> import torch
            >>> from adamod_fused import AdaMod
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = AdaMod(model.parameters(), lr=1e-3)
            >>> model(torch.ones(2, 4)).sum().backward()
            >>> optimizer.step()
            >>> with optimizer.state_values(model.weight) as states:
            ...     _ = states["exp_avg"].zero_()
        """
        _, _, who, entries = self._find(param)
        if not entries:
            raise ValueError(
                f"{who} has no state: it has not been stepped yet; ask optimizer.state.get(param)"
            )
        coded_states.check(param, entries, self.rule.states, who)
        values = _values(self.rule, param, entries, who)
        names = list(values)
        before = _versions(entries)
        yield values
        with torch.no_grad(), self._exclusion.of("the end of state_values()"):
            if self.state.get(param) is not entries or _versions(entries) != before:
                raise RuntimeError(
                    f"the states of {who} changed within the block of state_values(), which would "
                    "write back those of before; let the block end before a step, a load or "
                    "another edit"
                )
            _check(self.rule, param, values, names, who)
            first = self.rule.states[0]
            stored, layout = _formats(entries, first), local(entries[first]).stride()
            made = coded_states.in_formats(self.rule, param, values, stored, layout)
            for name, value in made.items():
                local(entries[name]).copy_(local(value))
            step = torch.as_tensor(
                values["step"], dtype=torch.float32, device=entries["step"].device
            )
            entries["step"].copy_(step.reshape(()))

    @torch.inference_mode(False)  # a step could not write tensors of that mode
    @torch.no_grad()
    def replace_param(
        self, old: Tensor, new: Tensor, change: Callable[[str, Tensor], Tensor]
    ) -> None:
        """Puts ``new`` in the place of ``old``, with states made of its own by ``change``.

        For parameters that gain or lose rows: pruned neurons, densified Gaussians. The step count
        stays. The caller replaces ``old`` in its module.

        Args:
            old: a parameter of this optimizer, stepped or not.
            new: the parameter that is stepped from now on, of any shape. It may be ``old`` itself
                where its ``.data`` was replaced.
            change: given the name and the values of each state, as ``state_values`` has them,
                returns the values of ``new``, of its shape: 0 for elements that are new.

        Raises:
            TypeError, ValueError: the optimizer does not have ``old``, has ``new`` already or
                cannot step it; what ``change`` returned does not fit ``new``. Nothing has changed.

        Example:
            >>> import torch
            >>> from adamod_fused import AdaMod
            >>> points = torch.nn.Parameter(torch.randn(8, 3))
            >>> optimizer = AdaMod([points], lr=1e-3)
            >>> points.square().sum().backward()
            >>> optimizer.step()
            >>> kept = torch.tensor([0, 1, 2, 4, 7])
            >>> fewer = torch.nn.Parameter(points.detach()[kept])
            >>> optimizer.replace_param(points, fewer, lambda name, values: values[kept])
        """
        with self._exclusion.of("replace_param()"):
            self._replace(old, new, change)

    def _replace(self, old: Tensor, new: Tensor, change: Callable[[str, Tensor], Tensor]) -> None:
        group, index, who, entries = self._find(old)
        if new is not old and any(new is p for g in self.param_groups for p in g["params"]):
            raise ValueError(f"the parameter to replace {who} is in this optimizer already")
        if not isinstance(new, Tensor):
            raise TypeError(f"{who} can only be replaced by a tensor, got {new!r}")
        if not new.is_leaf:
            raise ValueError(f"{who} can only be replaced by a leaf; give it new.detach()")
        validation.check_param(new, who)
        stored = formats.formats_of(new, group, who)
        replaced: Entries = {}
        if entries:
            values = _values(self.rule, old, entries, who)
            names = list(values)
            for name in names[1:]:
                values[name] = _changed(change, name, values[name], new, who)
            _check(self.rule, new, values, names, who)
            layout = dense_strides(local(new))
            ours = ("step", *self.rule.states, formats.EXPONENTS, REMAINDER)
            replaced = {
                "step": entries["step"],
                **{name: value for name, value in entries.items() if name not in ours},
                **coded_states.in_formats(self.rule, new, values, stored, layout),
            }
        group["params"][index] = new
        self.state.pop(old, None)
        if replaced:
            self.state[new] = replaced

    def _find(self, param: Tensor) -> tuple[dict[str, Any], int, str, Entries]:
        """A parameter's group, its place there, its label and its entries, empty without state."""
        for g, group in enumerate(self.param_groups):
            for i, known in enumerate(group["params"]):
                if known is param:
                    return group, i, validation.label(g, i, group), self.state.get(param) or {}
        what = f"shape {tuple(param.shape)}" if isinstance(param, Tensor) else repr(param)
        raise ValueError(
            f"the optimizer does not have this parameter ({what}); give one of its param_groups"
        )


def _formats(entries: Entries, first: str) -> Formats:
    """The formats that a parameter's entries are in, which its group may have left by now."""
    state = "fp32"
    if formats.EXPONENTS in entries:
        (state,) = (n for n, size in STATE_FORMATS.items() if size == entries[first].dtype.itemsize)
    return Formats(state, "split" if REMAINDER in entries else "plain")


def _versions(entries: Entries) -> Entries:
    """What the entries are and how often each was written; inference tensors do not count that."""
    tensors = {name: local(value) for name, value in entries.items() if isinstance(value, Tensor)}
    return {
        name: (id(entries[name]), None if tensor.is_inference() else tensor._version)
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def _values(rule: Any, param: Tensor, entries: Entries, who: str) -> Entries:
    """Copies of the step count, the states and, where there is one, the remainder."""
    found = coded_states.to_values(rule, param, entries, who)
    dtypes = dict.fromkeys(rule.states, COMPUTE_DTYPES[param.dtype])
    dtypes |= {REMAINDER: torch.int16} if REMAINDER in entries else {}
    copies = {
        name: wrapped(local(found[name]).to(dtype, copy=True), found[name])
        for name, dtype in dtypes.items()
    }
    return {"step": entries["step"].clone(), **copies}


def _changed(
    change: Callable[[str, Tensor], Tensor], name: str, values: Tensor, new: Tensor, who: str
) -> Tensor:
    """What ``change`` makes of the values of a state, as a tensor of its own."""
    dtype = torch.int16 if name == REMAINDER else COMPUTE_DTYPES[new.dtype]
    changed = change(name, values)
    if not isinstance(changed, Tensor):
        raise TypeError(f"change must return a tensor for {name} of {who}, got {changed!r}")
    return changed.detach().to(new.device, dtype, copy=True)


def _check(rule: Any, param: Tensor, values: Entries, names: list[str], who: str) -> None:
    """Raises where values cannot be the states of ``param``."""
    if values.keys() != set(names):
        raise ValueError(
            f"the values of {who} must be {', '.join(names)}, got {', '.join(values) or 'none'}"
        )
    validation.check_state_entries(param, values, rule.states, who)
    coded_states.check_remainder(param, values, who, (torch.int16,))
    for name in names[1:]:
        if values[name].device != param.device:
            raise ValueError(
                f"{name} of {who} is on {values[name].device}; move it to {param.device}"
            )
    value_checks.check(rule, [(who, values)])
