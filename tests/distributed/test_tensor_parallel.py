"""Tensor-parallel DTensors, alone and under FSDP2, and gradients that come in other placements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from training import NEEDS_FSDP2, assert_same, full, kernels_alone

from adamod_fused import AdaMod

STEPS = range(3)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.ones(8))  # stays a plain tensor where no FSDP2 takes it

    def forward(self, rows: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(rows)))) * self.scale


def make(device: str) -> Block:
    torch.manual_seed(0)
    return Block().to(device)


def parallelize(block: Block, mesh: DeviceMesh) -> Block:
    plan = {
        "norm": SequenceParallel(sequence_dim=0, use_local_output=False),
        "up": ColwiseParallel(input_layouts=Shard(0)),
        "down": RowwiseParallel(),
    }
    parallelize_module(block, mesh, plan)
    return block


def train_parallel(device: str, with_fsdp: bool) -> None:
    size = distributed.get_world_size()
    if with_fsdp:
        mesh = init_device_mesh(device, (size // 2, 2), mesh_dim_names=("data", "tensor"))
        block = fully_shard(parallelize(make(device), mesh["tensor"]), mesh=mesh["data"])
    else:
        block = parallelize(make(device), init_device_mesh(device, (size,)))
    # In two groups, the first of which mixes plain parameters and DTensors.
    params = [block.scale, *(p for p in block.parameters() if p is not block.scale)]
    plain = make(device)
    plain_params = [plain.scale, *(p for p in plain.parameters() if p is not plain.scale)]
    optimizer, expected = (
        AdaMod([{"params": p[:3]}, {"params": p[3:], "lr": 0.2}], **OPTIONS)
        for p in (params, plain_params)
    )
    placements = set()
    with kernels_alone():
        for step in STEPS:
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            rows = torch.randn(16, 8, generator=generator).to(device)
            block(rows).square().sum().backward()
            for param, twin in zip(params, plain_params, strict=True):
                # Sums of ranks round in an order of their own, so the twin is given the results.
                twin.grad = full(param.grad).clone()
                if isinstance(param, DTensor):
                    placements.add((param.placements, param.grad.placements))
            optimizer.step()
            expected.step()
    assert_same(params, optimizer, plain_params, expected)
    differing = [pair for pair in placements if pair[0] != pair[1]]
    assert with_fsdp or ((Replicate(),), (Partial(),)) in differing  # the layer norm's


@pytest.mark.parametrize(
    ("world_size", "with_fsdp"),
    [(2, False), pytest.param(4, True, marks=NEEDS_FSDP2)],
)
def test_a_parallel_training_equals_a_plain_one(
    run: Callable[..., None], world_size: int, with_fsdp: bool
) -> None:
    run(train_parallel, world_size, with_fsdp)


def step_from_other_placements(device: str) -> None:
    mesh = init_device_mesh(device, (2,))
    rank = distributed.get_rank()
    torch.manual_seed(0)
    whole, grad = torch.randn(5, 3, device=device), torch.randn(5, 3, device=device)
    summand = grad * (0.25 if rank == 0 else 0.75)
    given = {
        "partial": DTensor.from_local(summand, mesh, [Partial()]),
        "replicated": DTensor.from_local(grad, mesh, [Replicate()]),
        "cut elsewhere": DTensor.from_local(grad, mesh, [Replicate()]).redistribute(
            mesh, [Shard(1)]
        ),
    }
    for placement in (Shard(0), Replicate()):
        for what, dtensor in given.items():
            start = DTensor.from_local(whole, mesh, [Replicate()]).redistribute(mesh, [placement])
            param, twin = nn.Parameter(start.clone()), nn.Parameter(whole.clone())
            optimizer, expected = AdaMod([param], **OPTIONS), AdaMod([twin], **OPTIONS)
            with kernels_alone():
                for _ in STEPS:
                    before = dtensor.to_local().clone()
                    param.grad, twin.grad = dtensor, full(dtensor)
                    optimizer.step()
                    expected.step()
                    assert torch.equal(dtensor.to_local(), before), what
                    assert param.grad is dtensor
            assert_same([param], optimizer, [twin], expected)


def test_a_gradient_of_other_placements_is_redistributed(run: Callable[..., None]) -> None:
    run(step_from_other_placements, 2)


def step_from_a_pending_collective(device: str) -> None:
    mesh = init_device_mesh(device, (2,))
    param = nn.Parameter(DTensor.from_local(torch.ones(4, device=device), mesh, [Replicate()]))
    twin = nn.Parameter(torch.ones(4, device=device))
    optimizer, expected = AdaMod([param], **OPTIONS), AdaMod([twin], **OPTIONS)
    with kernels_alone():
        for step in STEPS:
            summand = torch.full((4,), 1.0 + step, device=device)
            pending = DTensor.from_local(summand, mesh, [Partial()])
            param.grad = pending.redistribute(mesh, [Replicate()], async_op=True)
            assert type(param.grad._local_tensor) is not Tensor
            twin.grad = 2 * summand
            optimizer.step()
            expected.step()
    assert_same([param], optimizer, [twin], expected)


def test_a_gradient_still_being_reduced_is_waited_for(run: Callable[..., None]) -> None:
    run(step_from_a_pending_collective, 2)
