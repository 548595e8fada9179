"""FSDP2: sharded steps equal unsharded ones bit for bit, by kernels, whatever the shards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS, STATES
from torch.distributed.tensor import DTensor
from training import HEIGHTS, assert_same, shard, train, train_plainly

from adamod_fused import AdaMod

STEPS = range(4)


def train_sharded(device: str) -> None:
    model = shard(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    train(model, optimizer, STEPS, device)
    plain, expected = train_plainly(STEPS, device)
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)

    # What checkpoints and other tools are told of the states.
    for param in model.parameters():
        states = optimizer.state[param]
        assert type(states["step"]) is torch.Tensor
        for name in STATES:
            assert type(states[name]) is DTensor
            assert states[name].placements == param.placements
            assert states[name].device_mesh == param.device_mesh
            assert states[name].shape == param.shape
            assert states[name].stride() == param.stride()
            assert states[name].to_local().shape == param.to_local().shape


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_sharded_training_equals_a_plain_one(run: Callable[..., None], world_size: int) -> None:
    run(train_sharded, world_size)


def replace_local_tensors(device: str) -> None:
    model = shard(device)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    for step in STEPS:
        train(model, optimizer, [step], device)
        sizes = [param.to_local().numel() for param in model.parameters()]
        model.double().float()  # exact, and FSDP2 gives its parameters new local tensors
        assert sizes == [param.to_local().numel() for param in model.parameters()]
    plain, expected = train_plainly(STEPS, device)
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)


def test_replaced_local_tensors_are_seen(run: Callable[..., None]) -> None:
    run(replace_local_tensors, 2)


def test_shards_are_even_uneven_and_empty() -> None:
    on = {n: [[len(c) for c in torch.empty(h).chunk(n)] for h in HEIGHTS] for n in (2, 4)}
    assert on[2] == [[2, 2], [3, 2], [4, 3], [1]]
    assert on[4] == [[1, 1, 1, 1], [2, 2, 1], [2, 2, 2, 1], [1]]
