"""clip_grad_norm_ with DTensors: the norm is over all shards, each element counted once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS, assert_same_bits
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from training import (
    NEEDS_FSDP2,
    Model,
    assert_same,
    backward,
    full,
    kernels_alone,
    shard,
    train,
    train_plainly,
)

from adamod_fused import AdaMod, release_gradients

STEPS = range(3)
MAX_NORM = 0.5


def clip_sharded(device: str, backend: str | None) -> None:
    model, plain = shard(device), Model().to(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS, backend=backend)
    expected = AdaMod(plain.parameters(), **OPTIONS)
    for step in STEPS:
        for each, trained in ((optimizer, model), (expected, plain)):
            each.zero_grad()
            backward(trained, step, device, shared=trained is model)
        norm = optimizer.clip_grad_norm_(MAX_NORM)
        assert norm > MAX_NORM
        assert not isinstance(norm, DTensor)
        assert_same_bits(norm, expected.clip_grad_norm_(MAX_NORM))
        of_torch = full(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))
        assert norm.item() == pytest.approx(of_torch.item(), rel=1e-6)
        backward_again(model, step, device)
        optimizer.clip_grad_norm_(MAX_NORM)
        optimizer.step()
        expected.step()
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)


def backward_again(model: nn.Module, step: int, device: str) -> None:
    """torch's clip has written to the gradients, if only a factor of 1."""
    for param in model.parameters():
        param.grad = None
    backward(model, step, device, shared=True)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_norm_over_all_shards(
    run: Callable[..., None], world_size: int, backend: str | None
) -> None:
    run(clip_sharded, world_size, backend)


def clip_in_two_dimensions(device: str) -> None:
    """Replicas are not counted twice, and plain parameters stand beside DTensors."""
    mesh = init_device_mesh(device, (2, 2), mesh_dim_names=("replicate", "shard"))
    generator = torch.Generator().manual_seed(0)
    values = [torch.randint(-4, 5, (5, 3), generator=generator).float() for _ in range(4)]
    placements = [(Replicate(), Shard(0)), (Shard(0), Shard(1)), (Replicate(), Replicate())]
    params = [
        nn.Parameter(distribute_tensor(value.to(device), mesh, placement))
        for value, placement in zip(values, placements, strict=False)
    ]
    params.append(nn.Parameter(values[3].to(device)))
    for param, placement in zip(params, placements, strict=False):
        param.grad = distribute_tensor(full(param.detach()) * 2, mesh, placement)
    params[3].grad = params[3].detach() * 2
    twins = [nn.Parameter(value.to(device)) for value in values]
    for twin in twins:
        twin.grad = twin.detach() * 2
    optimizer, expected = AdaMod(params, **OPTIONS), AdaMod(twins, **OPTIONS)
    with kernels_alone():
        assert_same_bits(optimizer.clip_grad_norm_(1.0), expected.clip_grad_norm_(1.0))
        optimizer.step()
        expected.step()
    assert_same(params, optimizer, twins, expected)


def test_replicas_count_once(run: Callable[..., None]) -> None:
    run(clip_in_two_dimensions, 4)


def find_inf_on_one_rank(device: str) -> None:
    """All ranks skip where one finds inf: a GradScaler's decision is made from the whole norm."""
    model = shard(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    scaler = torch.amp.GradScaler(device, init_scale=8.0)
    scaler.scale(torch.ones((), device=device))
    backward(model, 0, device, shared=True)
    param = next(model.parameters())
    before = full(param.detach()).clone()
    if distributed.get_rank() == 1:
        param.grad.to_local()[0] = torch.inf
    optimizer.clip_grad_norm_(1.0, grad_scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert_same_bits(full(param.detach()), before)


@NEEDS_FSDP2
def test_one_ranks_inf_skips_the_step_on_all(run: Callable[..., None]) -> None:
    run(find_inf_on_one_rank, 2)


def release_sharded(device: str) -> None:
    """FSDP2 calls hooks once a shard's gradient is reduced."""
    model = shard(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    release_gradients(model, optimizer, batch_numel=8)
    for step in STEPS:
        backward(model, step, device, shared=True)
        optimizer.step()
        assert all(param.grad is None for param in model.parameters())
    plain, expected = train_plainly(STEPS, device)
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)


@NEEDS_FSDP2
def test_released_gradients_of_shards(run: Callable[..., None]) -> None:
    run(release_sharded, 2)


def look_for_inf(device: str) -> None:
    model = shard(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    train(model, optimizer, [0], device)
    optimizer.check_finite()
    if distributed.get_rank() == 0:
        next(model.parameters()).grad.to_local()[0] = torch.nan
        with pytest.raises(FloatingPointError, match="the gradient of parameter 0"):
            optimizer.check_finite()


def test_each_rank_looks_at_what_it_has(run: Callable[..., None]) -> None:
    run(look_for_inf, 2)
