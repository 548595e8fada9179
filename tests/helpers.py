"""Small things that several tests need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from adamod_fused import AdaMod
from adamod_fused.backends.cpu import CpuBackend

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "tensor") -> None:
    """Equality of every bit, the sign of zero too; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    bits = _BITS[actual.dtype.itemsize]
    a, b = actual.detach().contiguous().cpu(), expected.detach().contiguous().cpu()
    differs = (a.view(bits) != b.view(bits)) & ~(a.isnan() & b.isnan())
    if differs.any():
        where = differs.nonzero()[0].tolist()
        got, wanted = a[tuple(where)].item(), b[tuple(where)].item()
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {differs.numel()} elements differ, first at {where}: "
            f"{got!r} is not {wanted!r}"
        )


# Hyperparameters that are not the defaults, and under which both sides of the bound occur.
OPTIONS = {
    "lr": 3e-2,
    "betas": (0.8, 0.95),
    "beta3": 0.9,
    "eps": 1e-6,
    "weight_decay": 0.1,
    "variant": "released",
    "maximize": True,
}


def launching(around: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """In place of ``CpuBackend.launcher``: ``around(launch, *arguments)`` runs at each launch."""
    launcher = CpuBackend.launcher

    def replaced(*arguments: Any) -> Callable[[], None]:
        launch = launcher(*arguments)
        return lambda: around(launch, *arguments)

    return replaced


SHAPES = ((3, 4), (), (7,), (0,), (2, 3, 5))
STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr")


def random_params(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[torch.nn.Parameter]:
    """Parameters with the same values for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, device="cpu").to(dtype) for shape in shapes]
    return [torch.nn.Parameter(value) for value in values]


def set_random_grads(params: Iterable[Tensor], seed: int) -> None:
    """Fresh gradients of each parameter's shape, the same for the same seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for param in params:
        values = torch.randn(param.shape, generator=generator, dtype=torch.float32, device="cpu")
        param.grad = values.to(param.dtype)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def make_optimizer(
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    backend: str | None = None,
    fused: bool | None = None,
) -> AdaMod:
    """An optimizer over SHAPES in two groups that differ."""
    params = random_params(*SHAPES, dtype=dtype, seed=seed)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.2, "maximize": False}]
    return AdaMod(groups, **OPTIONS, backend=backend, fused=fused)


def train_step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    set_random_grads(params_of(optimizer), seed)
    optimizer.step()


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with fresh gradients, each step's the same at every call."""
    for step in steps:
        train_step(optimizer, step)


def assert_same_training(actual: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """The same bits in the parameters and in the states of two optimizers."""
    pairs = zip(params_of(actual), params_of(expected), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert_same_bits(a, b, f"parameter {i}")
        a_state, b_state = actual.state.get(a, {}), expected.state.get(b, {})
        assert a_state.keys() == b_state.keys(), f"states of parameter {i}"
        for name in b_state:
            assert_same_bits(a_state[name], b_state[name], f"{name} of parameter {i}")


class Snapshot:
    """What an optimizer holds, to find later that it still does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.before = self._take()

    def _take(self) -> tuple[list[object], dict[str, Tensor]]:
        values: list[object] = []
        tensors: dict[str, Tensor] = {}

        def add(name: str, item: object) -> None:
            if isinstance(item, Tensor):
                values.append((name, id(item)))
                if item.device.type != "meta":  # which has no values
                    tensors[name] = item.detach().clone()
            else:
                values.append((name, copy.deepcopy(item)))

        for g, group in enumerate(self.optimizer.param_groups):
            for key, value in group.items():
                for i, item in enumerate(value) if key == "params" else [(0, value)]:
                    add(f"{key} {i} of group {g}", item)
        for k, (param, states) in enumerate(self.optimizer.state.items()):
            values.append((f"key {k} of the state", id(param)))
            for key, value in states.items() if isinstance(states, dict) else [("?", states)]:
                add(f"{key} of entry {k} of the state", value)
        return values, tensors

    def assert_unchanged(self) -> None:
        values, tensors = self._take()
        assert values == self.before[0]
        for name, tensor in tensors.items():
            assert_same_bits(_as_real(tensor), _as_real(self.before[1][name]), name)


def _as_real(tensor: Tensor) -> Tensor:
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
