"""Runs the kernels of a plan on the tensors that its table has taken down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import validation
from .bound_stats import Look
from .control import Control
from .dtensor import local, redistributed
from .hyperparameters import DeviceNumber, on_host
from .layout import laid_out, lies_as
from .members import Batch, Member

ROUND_NUMEL = 1 << 22
"""Elements of parameters and gradients that are copied into another layout at a time, or more."""


class Staged(NamedTuple):
    """A parameter that the kernels step by copies, of itself or of its gradient."""

    place: int  # in the table
    shard: Tensor
    grad: Tensor
    layout: tuple[int, ...]

    @property
    def copied(self) -> int:
        """Elements that are copied."""
        tensors = (self.shard, self.grad)
        return sum(t.numel() for t in tensors if t.is_neg() or not lies_as(t, self.layout))


class Kernels:
    """The batches of a plan.

    Args:
        rule: a rule of ``reference.py``.
        table: the compiled table.
        batches: those of the table.
        members: the parameters of the table; none of them is kept.
    """

    def __init__(
        self, rule: Any, table: Any, batches: Sequence[Batch], members: Sequence[Member]
    ) -> None:
        self._rule, self._table, self._batches = rule, table, batches
        self._kept = [(member.batch, member.label, member.layout) for member in members]
        self._groups_on_host = {
            member.group
            for member in members
            if member.batch >= 0 and not batches[member.batch].counts_on_device
        }
        bumps = table.bumps_versions  # else Python does
        self.is_uninterrupted = bumps and all(batch.backend.is_uninterrupted for batch in batches)
        """Whether a step without copies runs no Python code from its first launch to its last."""

    def run(
        self,
        staged: Sequence[int],
        hyperparameters: Sequence[dict[str, Any]],
        control: Control | None,
        look: Look | None,
    ) -> None:
        """Steps the tensors and counts the step.

        Args:
            staged: what ``Table.staged`` says.
            hyperparameters: as of ``Plan.run``.
            control: likewise.
            look: likewise.
        """
        table = self._table
        groups = [self._rule.hyperparameters(**values) for values in hyperparameters]
        if table.num_scalars:
            known = self._groups_on_host
            numbers = [on_host(g) if i in known else None for i, g in enumerate(groups)]
            table.prepare(self._rule.name, numbers)
        copied = self._checked(staged) if staged else {}
        launches: list[tuple[int, Any]] = []
        held: list[Any] = []  # what the launches read
        skipped = False
        for index, batch in enumerate(self._batches):
            values = control.values.to(batch.device) if control is not None else None
            held.append(values)
            if batch.counts_on_device:
                held += self._set_groups(index, batch.device, groups)
            elif control is not None and control.may_skip and control.values[1] != 0:
                skipped = True  # what the host counts only the host can leave as it is
                continue
            if index in copied:
                self._run_by_copies(index, copied[index], values, look)
                launches.append((index, None))
            else:
                launches.append((index, self._launcher(index, values, look)))
        table.run(launches)
        if skipped:
            table.clear()  # lets go of the gradients

    def _launcher(
        self, index: int, values: Tensor | None, look: Look | None
    ) -> Callable[[], None] | None:
        """Steps the rows that a batch of the table has; None where there is nothing to do."""
        table, (backend, device, dtype, counts_on_device, _) = self._table, self._batches[index]
        batch = table.batch(index)
        if not (batch.num_chunks or (counts_on_device and batch.num_rows)):
            return None
        observed = None
        if look is not None:
            observed = look.room(batch.rows, backend.chunk_size, table.row_params(index), device)
        return backend.launcher(self._rule.name, table, index, device, dtype, values, observed)

    def _run_by_copies(
        self, index: int, staged: Sequence[Staged], values: Tensor | None, look: Look | None
    ) -> None:
        """Steps a batch: first what needs no copies, then by copies that exist for a round each."""
        by_copies = {each.place for each in staged}
        rest = [i for i in self._table.row_params(index) if i not in by_copies]
        for part in ([], *_rounds(staged)):
            self._table.select(index, [each.place for each in part] or rest)
            copies = [(each.shard, self._stage(each)) for each in part]
            launch = self._launcher(index, values, look)
            if launch is not None:
                launch()
            for shard, (param, _) in copies:
                if param is not shard:
                    shard.detach().copy_(param)

    @torch.no_grad()
    def stage(self, staged: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Has the table's rows of parameters point to copies, which it returns, of all at once."""
        copied = chain.from_iterable(self._checked(staged).values())
        return [self._stage(each) for each in copied]

    def _checked(self, staged: Sequence[int]) -> dict[int, list[Staged]]:
        """Parameters that need copies by their batch, after all of them are checked.

        Gradients of DTensors that other placements have cut are redistributed.
        """
        found: dict[int, list[Staged]] = {}
        for index in staged:
            batch, label, layout = self._kept[index]
            param, given = self._table.param(index), self._table.grad(index)
            validation.check_grad(param, given, label)
            redone = redistributed(given, param)
            validation.check_grad(param, redone, label)
            validation.check_sharding(param, redone, f"the gradient of {label}")
            each = Staged(index, local(param), local(redone), layout)
            found.setdefault(batch, []).append(each)
        return found

    @torch.no_grad()
    def _stage(self, each: Staged) -> tuple[Tensor, Tensor]:
        """Has a parameter's row point to a copy of it and of its gradient, where they need one."""
        param, grad = laid_out(each.shard, each.layout), laid_out(each.grad, each.layout)
        self._table.stage(each.place, param.data_ptr(), grad.data_ptr())
        return param, grad

    def _set_groups(
        self, index: int, device: torch.device, groups: Sequence[tuple[Any, ...]]
    ) -> list[Tensor]:
        """Tells the table where a batch's hyperparameters are; returns the tensors among them."""
        held: list[Tensor] = []

        def address(value: Any) -> Any:
            if not isinstance(value, DeviceNumber):
                return value
            held.append(value.tensor.detach().to(device))
            return held[-1].data_ptr(), held[-1].dtype is torch.float64

        self._table.set_groups(index, [tuple(map(address, numbers)) for numbers in groups])
        return held


def _rounds(staged: Sequence[Staged]) -> Iterator[list[Staged]]:
    """The parameters in parts: copies of many, or of one large one."""
    part: list[Staged] = []
    for each in staged:
        part.append(each)
        if sum(one.copied for one in part) >= ROUND_NUMEL:
            yield part
            part = []
    if part:
        yield part
