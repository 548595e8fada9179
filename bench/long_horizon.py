"""How far slow averages kept in few bits drift from float64, ours and those of other optimizers.

Gradients of three distributions for some steps, then ten times smaller ones for as many. Every
storage gets the same gradients and does AdaMod's arithmetic in float32 on v and s; ours is the
optimizer itself, of the others it is what their own quantiser, or their cast, keeps of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from adamod_fused import AdaMod
from adamod_fused.codes import stochastically_rounded

BETAS = (0.999, 0.9999)
GRADIENTS = ("Gaussian", "heavy-tailed", "sparse")
STATES = ("exp_avg_sq", "exp_avg_lr")
SMALLER = 0.1  # gradients of the second half
LR, EPS = 1e-3, 1e-8
QUANTILES = (0.05, 0.5, 0.95)


def draw(generator: torch.Generator, numel: int) -> Tensor:
    """Gradients of one step, float32, a row for each of GRADIENTS."""
    normal, scale = torch.randn(2, numel, generator=generator)
    kept = torch.rand(numel, generator=generator) < 0.1
    heavy = torch.randn(numel, generator=generator) / scale.abs().clamp(min=0.05)
    return torch.stack([normal, heavy, normal * kept])


class Averages:
    """v and s, ``[betas, gradients, numel]``, in float64; the rule's bound, with beta2 = beta3."""

    def __init__(self, numel: int, dtype: torch.dtype = torch.float64) -> None:
        shape = (len(BETAS), len(GRADIENTS), numel)
        self.values = torch.zeros(2, *shape, dtype=dtype)
        self._betas = torch.tensor(BETAS, dtype=torch.float64).view(-1, 1, 1)
        self._keep, self._take = self._betas.to(dtype), (1 - self._betas).to(dtype)

    def step(self, grads: Tensor, step: int) -> None:
        v, s = self.values
        scale = (1 - self._betas**step).rsqrt().to(v.dtype)
        v.mul_(self._keep).add_(grads.to(v.dtype).square() * self._take)
        s.mul_(self._keep).add_(LR / (v.sqrt() * scale + EPS) * self._take)

    def read(self) -> Tensor:
        return self.values


class Storage(Protocol):
    """Something that keeps v and s of the same gradients."""

    def step(self, grads: Tensor, step: int) -> None: ...

    def read(self) -> Tensor:
        """v and s, as ``Averages.values``."""


class Kept(Averages):
    """float32 between the two ends of a step, and in between what ``keep`` makes of it."""

    def __init__(self, numel: int, keep: Callable[[Tensor], Tensor]) -> None:
        super().__init__(numel, torch.float32)
        self._keep_values = keep

    def step(self, grads: Tensor, step: int) -> None:
        super().step(grads, step)
        self.values = self._keep_values(self.values)


class Ours:
    """AdaMod with coded states; a parameter for each beta and distribution."""

    def __init__(self, numel: int, state_format: str) -> None:
        self._params = [[torch.nn.Parameter(torch.zeros(numel)) for _ in GRADIENTS] for _ in BETAS]
        groups = [
            {"params": params, "betas": (0.9, beta), "beta3": beta}
            for params, beta in zip(self._params, BETAS, strict=True)
        ]
        self._optimizer = AdaMod(
            groups, lr=LR, eps=EPS, state_format=state_format, min_coded_numel=0
        )

    def step(self, grads: Tensor, step: int) -> None:
        for params in self._params:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        self._optimizer.step()

    def read(self) -> Tensor:
        states: dict[int, dict[str, Tensor]] = self._optimizer.state_dict()["state"]
        rows = [[states[n][name].float() for n in sorted(states)] for name in STATES]
        return torch.stack([torch.stack(row) for row in rows]).view(
            2, len(BETAS), len(GRADIENTS), -1
        )


def bfloat16_nearest(numel: int) -> Storage:
    """As torch's fused kernels keep the states of bfloat16 parameters."""
    return Kept(numel, lambda values: values.bfloat16().float())


def bfloat16_stochastic(numel: int) -> Storage:
    """As several optimizers do, with independent random bits."""
    generator = torch.Generator().manual_seed(2)

    def keep(values: Tensor) -> Tensor:
        random = torch.randint(0, 1 << 32, values.shape, generator=generator)
        return stochastically_rounded(values, random).float()

    return Kept(numel, keep)


def bitsandbytes_8bit(numel: int) -> Storage:
    """What Adam8bit does to its second moment: its own functions, blocks of 256."""
    functional: Any = import_module("bitsandbytes.functional")
    code = functional.create_dynamic_map(signed=False)

    def keep(values: Tensor) -> Tensor:
        quantized, scales = functional.quantize_blockwise(values, code=code, blocksize=256)
        return functional.dequantize_blockwise(quantized, scales)

    return Kept(numel, keep)


def torchao_8bit(numel: int) -> Storage:
    """What AdamW8bit does to its second moment: its own tensor subclass, blocks of 256."""
    subclass: Any = import_module("torchao.optim.subclass_8bit")
    shape = (2, len(BETAS), len(GRADIENTS), numel)
    state = subclass.OptimState8bit.zeros(shape, signed=False, block_size=256)

    def keep(values: Tensor) -> Tensor:
        state.copy_(values)
        return state.dequantize()

    return Kept(numel, keep)


# With the package that each needs, if any.
STORAGES: dict[str, tuple[str | None, Callable[[int], Storage]]] = {
    "AdaMod 8bit": (None, lambda numel: Ours(numel, "8bit")),
    "AdaMod 16bit": (None, lambda numel: Ours(numel, "16bit")),
    "bfloat16, nearest": (None, bfloat16_nearest),
    "bfloat16, stochastic": (None, bfloat16_stochastic),
    "bitsandbytes 8-bit": ("bitsandbytes", bitsandbytes_8bit),
    "torchao 8-bit": ("torchao", torchao_8bit),
}


class Drift(NamedTuple):
    """How a state's ratio to float64 is spread over elements, after some steps."""

    step: int
    beta: float
    gradients: str
    state: str
    quantiles: tuple[float, ...]
    zeros: int
    """Elements that are zero, and in float64 are not."""


def study(
    storages: dict[str, Storage], numel: int, steps: int, every: int, seed: int = 1
) -> Iterator[tuple[str, Drift]]:
    """Runs ``steps`` steps and as many with smaller gradients; looks after ``every`` many."""
    generator = torch.Generator().manual_seed(seed)
    truth = Averages(numel)
    for step in range(1, 2 * steps + 1):
        grads = draw(generator, numel) * (SMALLER if step > steps else 1.0)
        truth.step(grads, step)
        for storage in storages.values():
            storage.step(grads, step)
        if step % every == 0:
            for name, storage in storages.items():
                for drift in _drifts(step, storage.read(), truth.values):
                    yield name, drift


def _drifts(step: int, values: Tensor, truth: Tensor) -> Iterator[Drift]:
    probabilities = torch.tensor(QUANTILES, dtype=torch.float64)
    for k, state in enumerate(STATES):
        for b, beta in enumerate(BETAS):
            for g, gradients in enumerate(GRADIENTS):
                got, wanted = values[k, b, g].double(), truth[k, b, g]
                known = wanted != 0  # v of an element that has seen no gradient yet
                ratios = got[known] / wanted[known]
                found = tuple(torch.quantile(ratios, probabilities).tolist())
                zeros = int((ratios == 0).sum())
                yield Drift(step, beta, gradients, state, found, zeros)
