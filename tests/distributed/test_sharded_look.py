"""What is seen of a sharded step: on each rank the elements that it holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import OPTIONS
from torch import Tensor, distributed, nn
from training import Model, backward, shard, train

from adamod_fused import AdaMod

STEPS = range(3)


def mine(whole: Tensor) -> Tensor:
    """This rank's rows, maybe none."""
    chunks = whole.chunk(distributed.get_world_size())
    rank = distributed.get_rank()
    return chunks[rank] if rank < len(chunks) else whole[:0]


def look_at_shards(device: str) -> None:
    model = shard(device)
    optimizer = AdaMod(model.named_parameters(), **OPTIONS, track_bound=1)
    train(model, optimizer, STEPS, device)

    whole = Model().to(device)
    pieces = {name: nn.Parameter(mine(p.detach()).clone()) for name, p in whole.named_parameters()}
    of_pieces = AdaMod(pieces.items(), **OPTIONS, track_bound=1)
    for step in STEPS:
        whole.zero_grad()
        backward(whole, step, device)
        for name, piece in pieces.items():
            piece.grad = mine(whole.get_parameter(name).grad).clone()
        of_pieces.step()
    assert optimizer.bound_stats() == of_pieces.bound_stats()
    assert optimizer.bound_stats("group") == of_pieces.bound_stats("group")
    assert [row["name"] for row in optimizer.bound_stats()] == [
        name for name, piece in pieces.items() if piece.numel()
    ]


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_rank_sees_what_it_holds(run: Callable[..., None], world_size: int) -> None:
    run(look_at_shards, world_size)
