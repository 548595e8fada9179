"""A model whose gradients are exact, so that a sharded training equals a plain one bit for bit.

Its loss is linear in every parameter and its data are small integers: sums are exact in whatever
order ranks add them up (in bfloat16 too, which holds whole numbers up to 256), and counts of ranks
and rows are powers of two.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from unittest import mock

import pytest
import torch
from helpers import OPTIONS, STATES, assert_same_bits
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from adamod_fused import AdaMod

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])
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


NEEDS_FSDP2 = pytest.mark.skipif(
    RELEASE < (2, 7) and not torch.cuda.is_available(),
    reason="FSDP2 of torch 2.6 asks for streams, which a CPU has not",
)


def fsdp2_runs(device: str) -> bool:
    return device == "cuda" or RELEASE >= (2, 7)


def shard(device: str, dtype: torch.dtype = torch.float32) -> Model:
    """The model, each layer cut over all ranks by FSDP2 or, where it does not run, as by FSDP2."""
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    model = Model().to(device, dtype)
    for layer in model.layers:
        if fsdp2_runs(device):
            fully_shard(layer, mesh=mesh)
        else:
            for name, param in list(layer.named_parameters()):
                cut = distribute_tensor(param.detach(), mesh, [Shard(0)])
                layer.register_parameter(name, nn.Parameter(cut))
    return fully_shard(model, mesh=mesh) if fsdp2_runs(device) else model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(-4, 5, (ROWS, WIDTH), generator=generator).float()
    return rows, torch.randint(-4, 5, (ROWS, sum(HEIGHTS)), generator=generator).float()


def my_share(tensor: Tensor) -> Tensor:
    """This rank's rows of a global batch."""
    return tensor.chunk(distributed.get_world_size())[distributed.get_rank()]


def backward(model: nn.Module, step: int, device: str = "cpu", *, shared: bool = False) -> None:
    """A step's gradients, each rank of a data-parallel run (``shared``) from its own rows."""
    first = next(model.parameters())
    if isinstance(first, DTensor) and not fsdp2_runs(device):
        twin = Model().to(device, first.dtype)  # gradients do not depend on weights
        backward(twin, step, device)
        for param, plain in zip(model.parameters(), twin.parameters(), strict=True):
            param.grad = distribute_tensor(plain.grad, param.device_mesh, param.placements)
        return
    data = [my_share(tensor) if shared else tensor for tensor in batch(step)]
    model(*(tensor.to(device, first.dtype) for tensor in data)).backward()


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: Iterable[int],
    device: str = "cpu",
    *,
    shared: bool = True,
) -> None:
    """Steps by kernels alone; ``device`` and ``shared`` as for ``backward``."""
    with kernels_alone():
        for step in steps:
            optimizer.zero_grad()
            backward(model, step, device, shared=shared)
            optimizer.step()


def train_plainly(
    steps: Iterable[int], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Model, AdaMod]:
    """What all distributed runs are to equal: one process, the whole batch."""
    model = Model().to(device, dtype)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    train(model, optimizer, steps, device, shared=False)
    return model, optimizer


@contextlib.contextmanager
def kernels_alone() -> Iterator[None]:
    """Fails where the reference steps anything, or where its warning is given."""
    with (
        mock.patch(
            "adamod_fused.by_reference.step_", side_effect=AssertionError("the reference ran")
        ),
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
