"""What a case of test_bad_input.py may spoil: an optimizer, or the arguments of the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import OPTIONS, STATES, Snapshot, assert_same_bits, random_params, set_random_grads
from torch import Tensor

from adamod_fused import AdaMod, functional

SHAPES = ((3, 4), (5,), (2, 3))
BAD = 1  # the index, in the second group, of the parameter that is spoiled
WHO = r"parameter 1 of group 1 \('bad'\)"


@dataclass
class Setting:
    """What a case may spoil: parameters in two groups, or the arguments of the function."""

    backend: str | None = None
    options: dict[str, Any] = field(default_factory=lambda: dict(OPTIONS))

    def __post_init__(self) -> None:
        self.params: list[Any] = random_params(*SHAPES)
        set_random_grads(self.params, 0)


class ClassSetting(Setting):
    """Spoiled after one step; then steps again."""

    who = WHO

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = ["good", "fine", "bad"]
        self.optimizer = self.make()
        self.optimizer.step()
        set_random_grads(self.params, 1)

    def make(self) -> AdaMod:
        named = list(zip(self.names, self.params, strict=True))
        groups = [{"params": named[:1]}, {"params": named[1:]}]
        return AdaMod(groups, **self.options, backend=self.backend)

    @property
    def bad(self) -> Any:
        return self.params[2]

    def set_grad(self, grad: Any) -> None:
        # Where torch itself checks what is assigned, the gradient changes behind its back.
        if isinstance(grad, Tensor) and grad.layout is torch.strided:
            self.bad.grad = torch.zeros_like(self.bad)
            self.bad.grad.data = grad
        else:
            self.bad.grad = grad

    def set_state(self, name: str, value: Any) -> None:
        self.optimizer.state[self.bad][name] = value

    def set_option(self, name: str, value: Any) -> None:
        self.optimizer.param_groups[1][name] = value

    def set_param(self, value: Tensor) -> None:
        """Another parameter in the bad one's place, without state, its gradient zeros."""
        del self.optimizer.state[self.bad]
        self.params[2] = value
        self.optimizer.param_groups[1]["params"][BAD] = value
        value.grad = torch.zeros_like(value)

    def run(self) -> None:
        self.optimizer.step()

    def snapshot(self) -> Callable[[], None]:
        return Snapshot(self.optimizer).assert_unchanged


class FunctionSetting(Setting):
    """Spoiled after one call, whose plan is kept."""

    who = r"parameter 2 of group 0"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.params = [param.detach() for param in self.params]
        self.grads: list[Any] = [torch.full_like(param, 0.5) for param in self.params]
        self.states = {name: [torch.full_like(p, 0.01) for p in self.params] for name in STATES}
        self.states["step"] = [torch.tensor(3.0) for _ in self.params]
        self.run()

    @property
    def bad(self) -> Any:
        return self.params[2]

    def set_grad(self, grad: Any) -> None:
        self.grads[2] = grad

    def set_state(self, name: str, value: Any) -> None:
        self.states[name][2] = value

    def set_option(self, name: str, value: Any) -> None:
        if name == "backend":
            self.backend = value
        else:
            self.options[name] = value

    def set_param(self, value: Tensor) -> None:
        self.params[2], self.grads[2] = value, torch.zeros_like(value)
        for name in STATES:
            self.states[name][2] = torch.zeros(value.shape)

    def run(self) -> None:
        options = {**self.options, "backend": self.backend}
        betas = options.pop("betas")
        lists = [self.states[name] for name in (*STATES, "step")]
        functional.adamod(
            self.params, self.grads, *lists, beta1=betas[0], beta2=betas[1], **options
        )

    def snapshot(self) -> Callable[[], None]:
        tensors = [*self.params, *self.grads, *(t for each in self.states.values() for t in each)]
        tensors = [t for t in tensors if isinstance(t, Tensor) and t.layout is torch.strided]
        tensors = [t for t in tensors if not t.is_complex() and t.device.type == "cpu"]
        before = [t.clone() for t in tensors]

        def assert_unchanged() -> None:
            for tensor, old in zip(tensors, before, strict=True):
                assert_same_bits(tensor, old)

        return assert_unchanged


SETTINGS = {"class": ClassSetting, "function": FunctionSetting}
