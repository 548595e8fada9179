"""A ``torch.optim.Optimizer`` around any rule: state, hyperparameters and checkpoints.

A subclass names its rule and checks its hyperparameters; it knows neither memory nor kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.parameter import is_lazy
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import ParamsT

from . import execution, fingerprints, finite, formats, state_dicts, validation
from .bound_stats import BoundTracker
from .control import Clip, HandedOver, check_max_norm, clip_of, control, hand_over, scale_of
from .copies import Copies
from .exclusion import Exclusion
from .fingerprints import Fingerprint
from .hyperparameters import as_integer, as_kept, as_numbers, is_on_device
from .memory_report import MemoryReport, memory_report
from .plan import Plan, is_capturing
from .state_values import EditableStates
from .step_hooks import with_step_hooks

if TYPE_CHECKING:
    from .gradient_release import GradientRelease


KEYWORDS = {**execution.DEFAULTS, **formats.DEFAULTS}
"""What a param group holds beside the rule's hyperparameters."""


class FusedOptimizer(EditableStates):
    """Steps every parameter that has a gradient by ``rule``, on the backend that serves it."""

    operator: ClassVar[Any]
    coded_operator: ClassVar[Any]
    """What ``operators.register`` made of the rule, for plain tensors and for all formats."""

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether torch's GradScaler leaves it to ``step`` to unscale and to skip.

        Only after ``clip_grad_norm_(grad_scaler=...)``: where it is True, Lightning refuses to clip
        and Accelerate sees no skipped step. A step of released gradients refuses the scaler.
        """
        return self._is_handed_over() or self._release is not None

    @staticmethod
    def check_hyperparameters(values: dict[str, Any]) -> None:
        """Raises TypeError or ValueError where the hyperparameters of a param group are bad."""
        raise NotImplementedError

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._check_group(defaults)
        self._tidy_group(defaults, defaults)
        super().__init__(params, defaults)
        self._exclusion = Exclusion()
        self._release: GradientRelease | None = None
        self._tracker = BoundTracker()
        self._clip: Clip | None = None  # for the next step
        self._handed_over: HandedOver | None = None  # what a GradScaler was told of a clip
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._plan: Plan | None = None
        self._checked: list[dict[str, Any]] = []  # hyperparameters that passed, a dict a group
        self._checked_types: list[list[type]] = []  # since 1 equals True
        self._counts_on_device = False  # needed by something that only a device knows
        self._hyperparameter_names = [n for n in self.defaults if n not in KEYWORDS]
        self._copies = Copies()  # of states, in state dicts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_clip": self._clip}  # a copy may share the gradients

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in KEYWORDS.items():  # pickles may be older than a keyword
            self.defaults.setdefault(name, value)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            self._tidy_group(group, self.defaults)
        # These outlive load_state_dict(), which calls this, and not a copy.
        self.__dict__.setdefault("_exclusion", Exclusion())
        self.__dict__.setdefault("_release", None)
        self.__dict__.setdefault("_tracker", BoundTracker())
        self.__dict__.setdefault("_handed_over", None)
        self.__dict__.setdefault("_clip", None)
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        if "_clip" in state and all(param.grad is None for param in params):
            self._clip = None  # copies of nn.Parameter have no gradients
        self._forget_plan()

    def _check_group(self, group: dict[str, Any]) -> None:
        self.check_hyperparameters(group)
        execution.check(group)
        formats.check(group)

    @staticmethod
    def _tidy_group(group: dict[str, Any], names: Iterable[str]) -> None:
        """Has a checked param group keep tuples of any sequences, and ints of any whole numbers."""
        for name in names:
            if name in formats.INTEGERS:
                group[name] = as_integer(group[name])
            elif name not in KEYWORDS:
                group[name] = as_kept(group[name])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a param group, after checking its hyperparameters and parameters.

        Raises:
            TypeError, ValueError, RuntimeError: as the constructor; the optimizer is unchanged.
        """
        if isinstance(param_group, dict) and "params" not in param_group:
            raise ValueError(
                f"the param group lacks 'params' (it has {', '.join(map(repr, param_group))}); "
                "give it the parameters that it is to optimize"
            )
        index = len(self.param_groups)
        try:
            super().add_param_group(param_group)
            group = self.param_groups[index]
            self._check_group(group)
            self._tidy_group(group, self.defaults)
            for i, param in enumerate(group["params"]):
                if is_lazy(param):  # has no shape or dtype until its module first runs
                    continue
                if param.requires_grad or not isinstance(param, torch.nn.Parameter):
                    label = validation.label(index, i, group)
                    validation.check_param(param, label)
                    formats.formats_of(param, group, label)
        except BaseException:
            del self.param_groups[index:]
            raise

    @with_step_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            TypeError, ValueError, RuntimeError: something cannot be stepped; no parameter and no
                state has changed. An error of the device itself (CUDA's, or out of memory) may
                come when parameters on another device or of another dtype are already stepped.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._step_in_graph()
        else:
            self._step_eagerly()
        return loss

    def _step_eagerly(self) -> None:
        with self._exclusion.of("step()"):
            if self._release is not None:
                self._release.check(self)
            self._step_once()
            self._tracker.advance()
            if self._release is not None:
                self._release.finish(self)

    def _step_within_backward(self) -> None:
        """Steps what has a gradient so far; ``step()`` is to follow."""
        with self._exclusion.of("a step within backward"):
            self._step_once()

    def _step_once(self) -> None:
        try:
            self._step()
        except BaseException:
            # A GradScaler takes them away only after a step that went well; left behind, they
            # would count twice in the next.
            for name in ("grad_scale", "found_inf"):
                self.__dict__.pop(name, None)
            self._tracker.abandon()
            raise

    def _step(self) -> None:
        hyperparameters = self._hyperparameters()
        grad_scale, found_inf = self._amp()
        if grad_scale is not None or found_inf is not None:
            self._check_not_released("a GradScaler")
        if found_inf is not None and self._clip is None and self._is_handed_over():
            raise RuntimeError(
                "the gradients still carry the loss scale, and the clip that was to take it away "
                "is gone; call clip_grad_norm_() with the grad_scaler once more"
            )
        if found_inf is not None or (self._clip is not None and self._clip.scaled):
            self._counts_on_device = True
        clip = self._clip
        plan = self._refreshed_plan(None if clip is None else clip.fingerprint)
        if clip is not None and not plan.has_fingerprint(clip.fingerprint):
            raise fingerprints.error()
        look = self._tracker.look(self.param_groups, hyperparameters)
        plan.run(hyperparameters, control(grad_scale, found_inf, clip), look)
        self._clip = None  # not before: a step that fails is done again with its clip

    def _amp(self) -> tuple[Tensor | None, Tensor | None]:
        """What a GradScaler sets for the time of a step: the loss scale, and whether to skip."""
        return getattr(self, "grad_scale", None), getattr(self, "found_inf", None)

    def _is_handed_over(self) -> bool:
        """Whether a GradScaler takes gradients for unscaled that a clip was to unscale."""
        return self._handed_over is not None and self._handed_over.holds(self)

    def _check_not_released(self, who: str) -> None:
        if self._release is not None:
            raise RuntimeError(
                f"{who} needs all gradients before the first step, and release_gradients() steps "
                "and frees them during backward; remove() its handle"
            )

    def _is_controlled(self) -> bool:
        """Whether the next step is more than one of the parameters by their gradients."""
        beside = self._release is not None or self._tracker.every > 0
        return beside or self._clip is not None or any(value is not None for value in self._amp())

    def _refreshed_plan(self, clipped: Fingerprint | None = None) -> Plan:
        """The plan, with the tensors of now taken down; a new one only for ``clipped``, if any."""
        if self._copies:
            self._copies.check()
        plan = self._plan
        if (
            plan is None
            or plan.counts_on_device != self._counts_on_device
            or not plan.refresh(self.param_groups, self.state)
        ):
            if is_capturing():
                raise RuntimeError(
                    "a CUDA graph would make the states anew at each replay; do one step before "
                    "the capture, with these parameters and gradients for the same ones"
                )
            for group in self.param_groups:
                self._check_group(group)
            there = self._counts_on_device
            plan = Plan(
                self.rule, self.param_groups, self.state, counts_on_device=there, clipped=clipped
            )
            if not plan.refresh(self.param_groups, self.state):
                raise RuntimeError("parameters changed while they were being stepped")
            self._plan = plan
        return plan

    def clip_grad_norm_(
        self,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        *,
        grad_scaler: GradScaler | None = None,
    ) -> Tensor:
        """Has the next step clip the norm of all gradients together, at no pass of its own.

        The gradients are read once and not changed: the step multiplies them by the clip
        coefficient ``min(1, max_norm / (norm + 1e-6))``, which stays on the device. To be called
        after the last backward pass and right before ``step()``; called twice, the last call
        holds. What writes to a gradient's ``.data`` in between is not seen, nor what writes to a
        gradient that was made in inference mode. The value is that of
        ``torch.nn.utils.clip_grad_norm_``, which changes gradients.

        Args:
            max_norm: bound on the norm, >= 0, in units of the gradient.
            norm_type: 2.0; other norms are clipped by torch's own function, which writes to the
                gradients. Default: 2.0.
            error_if_nonfinite: raise where a gradient is not finite, which waits for the device.
                Default: False.
            grad_scaler: the scaler that scaled the loss. In place of ``scaler.unscale_``: the norm
                is that of the unscaled gradients, and this one pass also finds what is not finite.
                Then ``scaler.step(optimizer)`` and ``scaler.update()``: the step unscales as it
                reads, and skips on the device, so that the host waits for no value and trainers do
                not learn of it. A ``max_norm`` of infinity only unscales. Default: None, for
                gradients without a scale or after ``scaler.unscale_``, which writes to them.

        Returns:
            The norm of the gradients before clipping: 0-dim, float32, on the device of one of them.

        Raises:
            TypeError, ValueError: ``max_norm`` is no number, negative or NaN.
            RuntimeError: a gradient is not finite and ``error_if_nonfinite``; the scaler's step is
                done already. ``step()`` raises it where gradients changed in between.
            As ``step``: something cannot be stepped.
        """
        arguments = (max_norm, norm_type, error_if_nonfinite, grad_scaler)
        if torch.compiler.is_compiling():
            from . import compiled  # imports dynamo: for those alone who compile

            norm: Tensor = compiled.outside_of_the_graph(self._clip_eagerly, *arguments)
            return norm
        return self._clip_eagerly(*arguments)

    def _clip_eagerly(
        self,
        max_norm: float,
        norm_type: float,
        error_if_nonfinite: bool,
        grad_scaler: GradScaler | None,
    ) -> Tensor:
        bound = check_max_norm(max_norm)
        self._check_not_released("clip_grad_norm_()")
        with self._exclusion.of("clip_grad_norm_()"):
            if grad_scaler is None and self._is_handed_over():
                raise RuntimeError(
                    "clip_grad_norm_() was called with a grad_scaler and is called again without; "
                    "give it again, since the gradients still carry the loss scale"
                )
            if norm_type == 2:
                return self._clip_in_step(bound, error_if_nonfinite, grad_scaler)
            if grad_scaler is not None and grad_scaler.is_enabled():
                raise ValueError(
                    f"grad_scaler serves norm_type 2, got {norm_type!r}; call "
                    "grad_scaler.unscale_(optimizer) and leave grad_scaler out"
                )
            params = [p for group in self.param_groups for p in group["params"]]
            norm = clip_grad_norm_(params, bound, norm_type, error_if_nonfinite)
            self._clip = None
            return norm

    @torch.no_grad()
    def _clip_in_step(
        self, bound: float, error_if_nonfinite: bool, grad_scaler: GradScaler | None
    ) -> Tensor:
        scale = None
        if grad_scaler is not None:
            scale = scale_of(grad_scaler, self, self._is_handed_over())
        plan = self._refreshed_plan()
        fingerprint = plan.fingerprint()
        norm, clip = clip_of(plan.sum_squares(), bound, scale, fingerprint)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(
                f"the norm of the gradients is {norm.item()}, so they cannot be clipped; "
                "check_finite() names the first bad one, error_if_nonfinite=False goes on"
            )
        self._clip = clip
        if grad_scaler is not None and scale is not None:
            self._handed_over = hand_over(grad_scaler, self, clip.found_inf)
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As every optimizer's; a clip that no step has used goes with the gradients."""
        super().zero_grad(set_to_none)
        self._clip = None

    @torch.no_grad()
    def check_finite(self) -> None:
        """Raises where a gradient, parameter or state holds inf or NaN; waits for the device once.

        Of a DTensor each rank looks at the elements that it has.

        Raises:
            FloatingPointError: names the first such tensor, in the order of the param groups.
        """
        finite.check(finite.read_or_written(self))

    def memory_report(self) -> MemoryReport:
        """What the states take, and split weights beside the parameters, of this rank.

        Returns:
            A list with a row for each param group, dtype and format, and ``total``; as a string
            a table. AdaMod in float32 and torch.optim.Adam stand beside it.

        Raises:
            ValueError: a parameter cannot have the formats that its group names.
        """
        return memory_report(self)

    def _step_in_graph(self) -> None:
        from . import compiled  # imports dynamo: for those alone who compile

        compiled.step(self)

    def _is_traceable(self) -> bool:
        """Whether the operator can step this; if so, the states that are missing are made.

        While a step is traced, this runs, so that states are made as ever, and is not traced.
        """
        from . import compiled

        self._hyperparameters()
        for group in self.param_groups:
            formats.check(group)
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        if not all(map(validation.is_plain, params)):
            return False
        Plan(self.rule, self.param_groups, self.state, counts_on_device=self._counts_on_device)
        compiled.let_graph_forget(self)
        return True

    def _hyperparameters(self) -> list[dict[str, Any]]:
        """The rule's hyperparameters of each param group, as numbers, checked where changed."""
        names = self._hyperparameter_names
        values = [{name: as_numbers(g[name]) for name in names} for g in self.param_groups]
        types = [list(map(type, group.values())) for group in values]
        if values != self._checked or types != self._checked_types:
            for group in self.param_groups:
                self._check_group(group)
            self._checked, self._checked_types = values, types
            on_device = any(is_on_device(v) for group in values for v in group.values())
            self._counts_on_device |= on_device
        return values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict, each state in the format that it has here.

        How a step runs, ``backend``, ``foreach``, ``fused``, ``differentiable`` and
        ``capturable``, and how states are stored, ``state_format``, ``weight_format`` and
        ``min_coded_numel``, stay as they are: values become codes by rounding to the nearest.

        As in torch, the memory of tensors that have this dtype and device already is taken over,
        not copied: load a deep copy where two optimizers are to go on from one state dict. Where a
        state of a parameter has to be converted, all its tensors are copied.

        Raises:
            TypeError, ValueError: the state dict does not fit; the optimizer is unchanged.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"a state dict is a dict, got {type(state_dict).__name__}")
        with state_dicts.loading(self):
            super().load_state_dict(state_dict)

    def state_dict(self) -> dict[str, Any]:
        """As every optimizer's, of values: codes are decoded, exactly, into tensors of their own.

        States of ``state_format="8bit"`` are bfloat16 there, those of ``"16bit"`` float32, so that
        the dict loads into any format, and ``block_exponents`` are left out. ``param_remainder`` of
        a DTensor is int32, since ranks cannot send each other int16.

        All entries of a parameter with coded states are copies. What writes to them in place, as
        ``torch.distributed.checkpoint.load`` does, restores nothing by itself: give the dict to
        ``load_state_dict`` afterwards. A step that comes first raises RuntimeError, but for a
        compiled one, which does not look.

        Raises:
            TypeError, ValueError: states were converted or cut, so that their codes have no
                values.
        """
        with state_dicts.decoding(self) as copies:
            made = super().state_dict()
        self._copies.add(copies)
        return made
