"""A ``torch.optim.Optimizer`` around any rule: state, hyperparameters and checkpoints.

A subclass names its rule and checks its hyperparameters; it knows neither memory nor kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, ParamsT

from . import execution, validation
from .plan import Plan
from .reference import COMPUTE_DTYPES


def as_numbers(value: Any) -> Any:
    """Hyperparameters may be 0-dim tensors; rules want numbers."""
    if isinstance(value, (float, int, str)):  # first, since asking for Tensor takes longest
        return value
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (tuple, list)):
        return tuple(as_numbers(item) for item in value)
    return value


class FusedOptimizer(Optimizer):
    """Steps every parameter that has a gradient by ``rule``, on the backend that serves it."""

    rule: ClassVar[Any]
    """A rule of ``reference.py``."""
    operator: ClassVar[Any]
    """What ``operators.register`` made of the rule."""

    @staticmethod
    def check_hyperparameters(values: dict[str, Any]) -> None:
        """Raises TypeError or ValueError where the hyperparameters of a param group are bad."""
        raise NotImplementedError

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._check_group(defaults)
        super().__init__(params, defaults)
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._plan: Plan | None = None
        self._is_stepping = False
        self._checked: list[dict[str, Any]] = []  # hyperparameters that passed, a dict a group

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in execution.DEFAULTS.items():  # pickles may be older than a keyword
            self.defaults.setdefault(name, value)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self._forget_plan()

    def _check_group(self, group: dict[str, Any]) -> None:
        self.check_hyperparameters(group)
        execution.check(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a param group, after checking its hyperparameters and parameters.

        Raises:
            TypeError, ValueError, RuntimeError: as the constructor; the optimizer is unchanged.
        """
        super().add_param_group(param_group)
        index, group = len(self.param_groups) - 1, self.param_groups[-1]
        try:
            self._check_group(group)
            for i, param in enumerate(group["params"]):
                if is_lazy(param):  # has no shape or dtype until its module first runs
                    continue
                if param.requires_grad or not isinstance(param, torch.nn.Parameter):
                    validation.check_param(param, validation.label(index, i, group))
        except (TypeError, ValueError, RuntimeError):
            self.param_groups.pop()
            raise

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
            return loss
        if self._is_stepping:
            raise RuntimeError(
                "step() was called while this optimizer is stepping, by another thread or by code "
                "that reading a gradient runs; let one step end before the next begins"
            )
        self._is_stepping = True
        try:
            self._step()
        finally:
            self._is_stepping = False
        return loss

    def _step(self) -> None:
        hyperparameters = self._hyperparameters()
        if self._plan is None or not self._plan.refresh(self.param_groups, self.state):
            for group in self.param_groups:
                self._check_group(group)
            self._plan = Plan(self.rule, self.param_groups, self.state)
            if not self._plan.refresh(self.param_groups, self.state):
                raise RuntimeError("parameters changed while they were being stepped")
        self._plan.run(hyperparameters)

    def _step_in_graph(self) -> None:
        from . import compiled  # imports dynamo: for those alone who compile

        compiled.step(self)

    def _is_traceable(self) -> bool:
        """Whether the operator can step this; if so, the states that are missing are made.

        While a step is traced, this runs, so that states are made as ever, and is not traced.
        """
        self._hyperparameters()
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        if not all(map(validation.is_plain, params)):
            return False
        Plan(self.rule, self.param_groups, self.state)
        return True

    def _hyperparameter_names(self) -> list[str]:
        return [name for name in self.defaults if name not in execution.DEFAULTS]

    def _hyperparameters(self) -> list[dict[str, Any]]:
        """The rule's hyperparameters of each param group, as numbers, checked where changed."""
        names = self._hyperparameter_names()
        values = [{name: as_numbers(g[name]) for name in names} for g in self.param_groups]
        if values != self._checked:
            for group in self.param_groups:
                self._check_group(group)
            self._checked = values
        return values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict, each state in the dtype that it has here.

        How a step runs, ``backend``, ``foreach``, ``fused`` and ``differentiable``, stays as it is.

        As in torch, a tensor that has this dtype and device already is taken over, not copied:
        load a deep copy where two optimizers are to go on from one state dict.

        Raises:
            TypeError, ValueError: the state dict does not fit; the optimizer is unchanged.
        """
        loaded: list[tuple[Tensor, dict[str, Tensor]]] = []
        how = [{name: group[name] for name in execution.DEFAULTS} for group in self.param_groups]

        def check(_: Optimizer, given: dict[str, Any]) -> None:
            self._check_state_dict(given)
            for param, saved in self._match(given):
                step = torch.as_tensor(saved["step"], dtype=torch.float32, device="cpu")
                states = {
                    name: saved[name].to(device=param.device, dtype=COMPUTE_DTYPES[param.dtype])
                    for name in self.rule.states
                }
                step = step.reshape(()) if step.ndim else step
                loaded.append((param, {"step": step, **states}))

        def restore(_: Optimizer) -> None:
            # torch cast the states to their parameter's dtype: these are from the source.
            for param, states in loaded:
                self.state[param].update(states)
            for group, keywords in zip(self.param_groups, how, strict=True):
                group.update(keywords)

        # Hooks of the user's run before the check and after the restoration.
        handles = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _match(self, state_dict: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        """Parameters with the state that a state dict holds for them, where it holds any."""
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        saved = state_dict["state"]
        return [(p, saved[i]) for i, p in zip(ids, params, strict=True) if saved.get(i)]

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key in ("state", "param_groups"):
            if key not in state_dict:
                raise ValueError(
                    f"the state dict lacks {key!r} (it has {', '.join(map(repr, state_dict))}); "
                    "load what an optimizer's state_dict() returned"
                )
        saved_groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved_groups]
        if sizes != saved_sizes:
            raise ValueError(
                f"the state dict has param groups of {saved_sizes} parameters, the optimizer of "
                f"{sizes}; load a state dict saved for the same model and groups"
            )
        for index, group in enumerate(saved_groups):
            given = {**group, **execution.DEFAULTS}
            missing = [name for name in self.defaults if name not in given]
            if missing:
                raise ValueError(
                    f"param group {index} of the state dict lacks {', '.join(missing)}; load a "
                    f"state dict that {type(self).__name__} saved"
                )
            self._check_group(given)
        labels = {
            param: validation.label(g, i, group)
            for g, group in enumerate(self.param_groups)
            for i, param in enumerate(group["params"])
        }
        for param, saved in self._match(state_dict):
            validation.check_param(param, labels[param])
            validation.check_state_entries(param, saved, self.rule.states, labels[param])
