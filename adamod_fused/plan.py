"""How an optimizer's tensors are stepped: which backend serves which, over which table.

A plan is made when an optimizer first steps and again when its tensors are no longer what they
were; in between, one call into the compiled table checks every tensor and takes down the new
gradients' addresses. It is a cache: all in it can be made again from ``param_groups`` and
``state``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from . import (
    by_reference,
    coded_states,
    execution,
    fake,
    fingerprints,
    formats,
    norm,
    states,
    validation,
)
from .backends import Backend, choose, extension
from .backends.extension import in_float_environment
from .bound_stats import Look
from .codes import key_of
from .control import Control
from .dtensor import dtensor_type, first_index, local, sharding_fields
from .fingerprints import Fingerprint
from .hyperparameters import on_host
from .interrupts import deferred
from .kernels import Kernels
from .layout import dense_strides
from .members import BY_REFERENCE, DORMANT, Batch, Member, ReferenceStep

Groups = Sequence[dict[str, Any]]
State = dict[Tensor, dict[str, Any]]
GradOf = Callable[[Tensor], "Tensor | None"]

_how = operator.itemgetter(*execution.DEFAULTS, *formats.DEFAULTS)


def _requests(groups: Groups) -> list[Any]:
    """How each param group is to be stepped: the values of its keywords, and their types.

    1 equals True and is not checked as True is.
    """
    values = [_how(group) for group in groups]
    return values + [tuple(map(type, each)) for each in values]


def is_capturing() -> bool:
    """Whether what is launched now goes into a CUDA graph, to be run later and again."""
    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return is_used and torch.cuda.is_current_stream_capturing()


def _is_in_memory(tensor: Tensor) -> bool:
    """Whether a tensor has elements that lie at its address."""
    return validation.is_plain(tensor) and not tensor.is_meta


class Plan:
    """The parameters of an optimizer, each with the backend that serves it.

    Args:
        rule: a rule of ``reference.py``.
        groups: the optimizer's ``param_groups``; of each, ``params``, the keywords of
            ``execution.py`` and ``formats.py`` and, for error messages, ``param_names`` are read
            here.
        state: the optimizer's ``state``. Missing states are made, of zeros; states that do not
            lie in memory as their parameter does, or are in other formats, are replaced by such
            as do and are.
        grad_of: where gradients come from.
        counts_on_device: step counts are kept on their parameters' device wherever a kernel can
            count there; else only where they are already or ``capturable`` asks for it.
        ordinals: numbers of the parameters, which choose their random bits; none counts them.
        clipped: the gradients that a clip is of; None allows any.
        may_wait: False looks at no exponent that a device would have to be waited for.
        fast: False reads tensors through Python methods whatever torch offers.

    Raises:
        TypeError, ValueError, RuntimeError: something cannot be stepped; ``state`` is unchanged.
    """

    def __init__(
        self,
        rule: Any,
        groups: Groups,
        state: State,
        grad_of: GradOf = operator.attrgetter("grad"),
        *,
        counts_on_device: bool = False,
        ordinals: Sequence[int] = (),
        clipped: Fingerprint | None = None,
        may_wait: bool = True,
        fast: bool = True,
    ) -> None:
        self.counts_on_device = counts_on_device
        self._ordinals = ordinals
        self._rule = rule
        self._grad_of = grad_of
        self._requested = _requests(groups)
        self._batches: list[Batch] = []
        self._chosen: dict[Any, Backend | None] = {}
        validation.check_distinct(groups)
        self._members: list[Member] = []
        for group_index, group in enumerate(groups):
            for i, param in enumerate(group["params"]):
                label = validation.label(group_index, i, group)
                self._members.append(self._admit(param, group_index, label, group, state))
        readable = [m for m in self._members if fake.has_values(m.param)]
        read = [m for m in readable if may_wait or m.param.device.type == "cpu"]
        coded_states.check_exponents(
            [(m.label, state[m.param]) for m in read if state.get(m.param)], rule.states
        )
        validation.check_disjoint(self._written(state), self._read())
        if clipped is not None:  # before states are made or converted
            due = (g for m in self._members if (g := grad_of(m.param)) is not None)
            if not fingerprints.are_equal(clipped, fingerprints.of(due)):
                raise fingerprints.error()
        self._by_reference = [m for m in self._members if m.batch == BY_REFERENCE]
        self._due_by_reference: list[ReferenceStep] = []
        self._addresses: list[Any] = []  # of the last step's of them
        self._parts: list[norm.Part] | None = None
        for member in self._members:
            if grad_of(member.param) is not None:
                batch = self._batches[member.batch] if member.batch >= 0 else None
                entries = state.get(member.param) or {}
                complete = states.complete(rule, member, batch, entries)
                if complete is not entries:
                    state[member.param] = complete
        self._table: Any = self._make_table(groups, state, fast) if self._batches else None
        self._kernels: Kernels | None = None
        if self._table is not None:
            self._kernels = Kernels(rule, self._table, self._batches, self._members)

    def _admit(
        self, param: Tensor, group_index: int, label: str, group: dict[str, Any], state: State
    ) -> Member:
        """Checks a parameter and chooses its backend."""
        if self._grad_of(param) is None and not state.get(param):
            return Member(param, group_index, label, DORMANT)
        validation.check_param(param, label)
        stored = formats.formats_of(param, group, label)
        self._check(param, label, state, stored)
        shard = local(param)
        layout = dense_strides(shard)
        number = BY_REFERENCE
        backend = None
        if not fake.is_fake(shard):
            backend = self._choose(group["backend"], shard, bool(group["fused"]))
        if backend is not None:
            there = self._counts_there(backend, group, state.get(param))
            batch = Batch(backend, shard.device, shard.dtype, there, stored)
            if batch not in self._batches:
                self._batches.append(batch)
            number = self._batches.index(batch)
        elif stored.are_plain:
            layout = ()  # the reference steps whatever lies anyhow
        ordinal = len(self._members)
        number_of_key = self._ordinals[ordinal] if self._ordinals else ordinal
        key = key_of(operator.index(group["seed"]), number_of_key)
        first = 0 if stored.are_plain else first_index(param, layout)
        kind = param.dtype, param.device
        return Member(param, group_index, label, number, layout, stored, first, key, *kind)

    def _counts_there(
        self, backend: Backend, group: dict[str, Any], entries: dict[str, Any] | None
    ) -> bool:
        if not backend.counts_on_device:
            return False
        is_there = entries is not None and entries["step"].device.type != "cpu"
        return self.counts_on_device or bool(group.get("capturable")) or is_there

    def _choose(self, name: str | None, param: Tensor, fused: bool) -> Backend | None:
        """As ``backends.choose``, asked once for all parameters of a kind."""
        kind = (name, type(param), param.device, param.dtype, fused)
        if kind not in self._chosen:
            self._chosen[kind] = choose(name, param, fused=fused)
        return self._chosen[kind]

    def _check(self, param: Tensor, label: str, state: State, stored: formats.Formats) -> None:
        entries = state.get(param) or None  # reading `state[param]` leaves an empty one behind
        states.check(self._rule, param, self._grad_of(param), entries, label, stored)

    def _written(self, state: State) -> Iterator[tuple[Tensor, str]]:
        """The tensors that a step writes and that exist already, and their names."""
        for member in self._members:
            shard, entries = local(member.param), state.get(member.param) or {}
            if member.batch == DORMANT or not _is_in_memory(shard):
                continue
            yield shard, member.label
            for name, tensor in coded_states.written(entries, self._rule.states):
                yield local(tensor), f"{name} of {member.label}"

    def _read(self) -> Iterator[tuple[Tensor, str]]:
        """The gradients of now, and their names."""
        for member in self._members:
            grad = self._grad_of(member.param)
            if grad is not None and _is_in_memory(local(grad)):
                yield local(grad), f"the gradient of {member.label}"

    def _make_table(self, groups: Groups, state: State, fast: bool) -> Any:
        table = extension.core.Table(list(self._rule.states), len(groups), fast)
        if (known := dtensor_type()) is not None:
            table.know_dtensor(known, sharding_fields())
        for batch in self._batches:
            table.add_batch(batch.backend.chunk_size, batch.counts_on_device, *batch.formats)
        for member in self._members:
            dtype = torch.float32  # of those that no batch serves, nothing is read
            if member.batch >= 0:
                dtype = coded_states.state_dtype(member.param, member.formats)
            where = member.group, member.batch
            table.add_param(member.param, *where, dtype, member.layout, member.coding)
            grad = self._grad_of(member.param)
            if grad is not None and validation.is_plain(local(grad)):
                table.trust(type(local(grad)))
        table.expect_state(state)
        return table

    def refresh(self, groups: Groups, state: State) -> bool:
        """Takes down this step's tensors; False where they are no longer those of the plan.

        Raises:
            TypeError, ValueError, RuntimeError: as the constructor.
        """
        if _requests(groups) != self._requested:
            return False
        if fake.in_fake_mode():
            for member in self._members:
                if self._grad_of(member.param) is not None:
                    fake.check_mode(member.param, member.label)
        unchanged = self._table.refresh if self._table is not None else self._same_params
        if not (unchanged(groups, state) and self._refresh_reference(state)):
            return False
        self._check_disjoint(state)
        return True

    def _check_disjoint(self, state: State) -> None:
        """Raises where tensors share memory that did not when they were last looked at."""
        addresses = self._reference_addresses() if self._due_by_reference else []
        may_overlap = self._table is not None and self._table.may_overlap
        if not may_overlap and addresses == self._addresses:
            return
        try:
            validation.check_disjoint(self._written(state), self._read())
        except BaseException:
            self._let_go()
            raise
        self._addresses = addresses
        if self._table is not None:
            self._table.accept_overlap()

    def _reference_addresses(self) -> list[Any]:
        """The addresses that the reference reads and writes, and how often the table's changed."""
        found: list[Any] = [0 if self._table is None else self._table.num_moves]
        for member, grad, entries in self._due_by_reference:
            written = (tensor for _, tensor in coded_states.written(entries, self._rule.states))
            shards = filter(_is_in_memory, map(local, (member.param, grad, *written)))
            found += [(shard.data_ptr(), shard.stride()) for shard in shards]
        return found

    def _same_params(self, groups: Groups, state: State) -> bool:
        params = [(i, param) for i, group in enumerate(groups) for param in group["params"]]
        return len(params) == len(self._members) and all(
            member.param is param
            and member.group == group_index
            and (member.batch == BY_REFERENCE or self._grad_of(param) is None)
            for member, (group_index, param) in zip(self._members, params, strict=True)
        )

    def _refresh_reference(self, state: State) -> bool:
        self._due_by_reference = []
        for member in self._by_reference:
            param = member.param
            grad = self._grad_of(param)
            if grad is None:
                continue
            if not state.get(param) or not self._is_as_planned(member):
                return False
            self._check(param, member.label, state, member.formats)
            if not states.fit(self._rule, member, state[param]):
                return False
            self._due_by_reference.append(ReferenceStep(member, grad, state[param]))
        return True

    @staticmethod
    def _is_as_planned(member: Member) -> bool:
        """Whether a parameter that the reference steps has the kind and layout of the plan."""
        param = member.param
        if (param.dtype, param.device) != (member.dtype, member.device):
            return False
        # Blocks of codes and random bits follow the order of elements in memory.
        return member.formats.are_plain or dense_strides(local(param)) == member.layout

    def run(
        self,
        hyperparameters: Sequence[dict[str, Any]],
        control: Control | None = None,
        look: Look | None = None,
    ) -> None:
        """Steps all that ``refresh`` or ``load`` took down.

        Args:
            hyperparameters: of each param group, numbers or ``DeviceNumber``.
            control: what holds for all gradients; None changes nothing.
            look: what is to be seen of the step.
        """
        self._check_capture()
        staged = [] if self._table is None else self._table.staged()
        in_python = staged or self._due_by_reference
        if self._kernels is not None:
            in_python = in_python or not self._kernels.is_uninterrupted
        try:
            with deferred() if in_python else nullcontext():
                if self._kernels is not None:
                    self._kernels.run(staged, hyperparameters, control, look)
                if self._due_by_reference:
                    self._run_reference(hyperparameters, control, look)
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        """Of the gradients that ``refresh`` took down."""
        self._due_by_reference = []
        if self._table is not None:
            self._table.clear()

    def _check_capture(self) -> None:
        if not is_capturing():
            return
        on_host = [i for i, batch in enumerate(self._batches) if not batch.counts_on_device]
        if self._due_by_reference or any(self._table.batch(i).num_rows for i in on_host):
            raise RuntimeError(
                "a CUDA graph would repeat this one step, whose count is on the host; make the "
                "optimizer with capturable=True and give it parameters that a kernel on the GPU "
                "serves"
            )

    @in_float_environment
    @torch.no_grad()
    def _run_reference(
        self, hyperparameters: Sequence[dict[str, Any]], control: Control | None, look: Look | None
    ) -> None:
        due, self._due_by_reference = self._due_by_reference, []  # holds gradients
        for step in due:
            if not fake.has_values(step.member.param):
                step.states["step"] += 1
        due = [step for step in due if fake.has_values(step.member.param)]
        if not due:  # the numbers of `control` may have no values either
            return
        factor, skip = (1.0, 0.0) if control is None else control.values.tolist()
        if skip:
            return
        for step in due:
            values = hyperparameters[step.member.group]
            numbers = {name: on_host(value) for name, value in values.items()}
            scalars = self._rule.prepare(int(step.states["step"]) + 1, **numbers)
            by_reference.step(self._rule, step, scalars, factor)
            if look is not None:
                ordinal = next(i for i, m in enumerate(self._members) if m is step.member)
                look.add(*by_reference.observe(self._rule, step, scalars, factor), [ordinal])
            step.states["step"] += 1

    @in_float_environment
    @torch.no_grad()
    def sum_squares(self) -> Tensor:
        """Of all gradients that ``refresh`` took down, which are let go: 0-dim float64.

        Of DTensors over all ranks: a collective.
        """
        due, self._due_by_reference = self._due_by_reference, []
        pairs = [(step.member.param, step.grad) for step in due]
        sums = norm.by_reference([pair for pair in pairs if fake.has_values(pair[0])])
        sums += [
            local(g).new_zeros((), dtype=torch.float64) for p, g in pairs if not fake.has_values(p)
        ]
        if self._kernels is not None:
            copies = self._kernels.stage(self._table.staged())
            sums += norm.by_kernels(self._table, self._norm_parts())
            del copies  # which were read
            self._table.clear()
        return norm.total(sums)

    def _norm_parts(self) -> list[norm.Part]:
        if self._parts is None:
            served = [(i, member) for i, member in enumerate(self._members) if member.batch >= 0]
            self._parts = norm.parts((i, m.param, self._batches[m.batch]) for i, m in served)
        return self._parts

    def fingerprint(self) -> Fingerprint:
        """Which gradients ``refresh`` took down."""
        by_table = self._table.fingerprint() if self._table is not None else []
        return by_table + fingerprints.of(step.grad for step in self._due_by_reference)

    def has_fingerprint(self, fingerprint: Fingerprint) -> bool:
        """Whether the gradients are those of a ``fingerprint``, unchanged, in any order."""
        in_table_alone = self._table is not None and not self._due_by_reference
        if in_table_alone and self._table.has_fingerprint(fingerprint):  # the fast way
            return True
        return fingerprints.are_equal(fingerprint, self.fingerprint())
