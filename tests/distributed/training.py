"""A model whose gradients are exact, so that a sharded training equals a plain one bit for bit.

Its loss is linear in every parameter and its data are small integers: sums are exact in whatever
order ranks add them up, and counts of ranks and rows are powers of two.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from unittest import mock

import torch
from helpers import OPTIONS, STATES, assert_same_bits
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from adamod_fused import AdaMod

ROWS = 8  # of a global batch
WIDTH = 6
# Rows of weights: even on 2 ranks, uneven on 2 and 4, and fewer than ranks.
HEIGHTS = (4, 5, 7, 1)


class Model(nn.Module):
    """Layers side by side: no layer's gradient depends on another's weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, height) for height in HEIGHTS)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))

    def forward(self, rows: Tensor, factors: Tensor) -> Tensor:
        outputs = [layer(rows) for layer in self.layers]
        return (torch.cat(outputs, dim=1) * factors).sum() / len(rows)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(-8, 9, (ROWS, WIDTH), generator=generator).float()
    return rows, torch.randint(-8, 9, (ROWS, sum(HEIGHTS)), generator=generator).float()


def my_share(tensor: Tensor) -> Tensor:
    """This rank's rows of a global batch."""
    return tensor.chunk(distributed.get_world_size())[distributed.get_rank()]


def backward(model: nn.Module, step: int, device: str = "cpu", *, shared: bool = False) -> None:
    """A step's gradients, each rank of a data-parallel run (``shared``) from its own rows."""
    data = batch(step)
    model(*((my_share(d) if shared else d).to(device) for d in data)).backward()


def train_plainly(steps: Iterable[int], device: str = "cpu") -> tuple[Model, AdaMod]:
    """What all distributed runs are to equal: one process, the whole batch."""
    model = Model().to(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    for step in steps:
        optimizer.zero_grad()
        backward(model, step, device)
        optimizer.step()
    return model, optimizer


@contextlib.contextmanager
def kernels_alone() -> Iterator[None]:
    """Fails where the reference steps anything, or where its warning is given."""
    with (
        mock.patch("adamod_fused.plan.step_", side_effect=AssertionError("the reference ran")),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("error", message="adamod_fused")
        yield


def full(tensor: Tensor) -> Tensor:
    """All elements of a tensor, those of a DTensor from all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(
    params: Iterable[Tensor], optimizer: AdaMod, plain: Iterable[Tensor], expected: AdaMod
) -> None:
    """The same bits in parameters and states as in plain ones."""
    for i, (a, b) in enumerate(zip(params, plain, strict=True)):
        assert_same_bits(full(a), b, f"parameter {i}")
        assert list(optimizer.state[a]) == ["step", *STATES]
        for name, value in expected.state[b].items():
            assert_same_bits(full(optimizer.state[a][name]), value, f"{name} of parameter {i}")
