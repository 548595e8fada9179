"""DDP and ZeroRedundancyOptimizer: on many ranks the bits of one process with the whole batch."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from training import Model, assert_same, train, train_plainly

from adamod_fused import AdaMod

STEPS = range(4)


def train_ddp(device: str, as_views: bool) -> None:
    model = DistributedDataParallel(Model().to(device), gradient_as_bucket_view=as_views)
    optimizer = AdaMod(model.parameters(), **OPTIONS)
    train(model, optimizer, STEPS, device)
    plain, expected = train_plainly(STEPS, device)
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)


@pytest.mark.parametrize(("world_size", "as_views"), [(2, True), (4, False)])
def test_ddp_equals_one_process(run: Callable[..., None], world_size: int, as_views: bool) -> None:
    run(train_ddp, world_size, as_views)


def train_zero(device: str) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # torch warns of what it imports

    def make() -> tuple[DistributedDataParallel, ZeroRedundancyOptimizer]:
        model = DistributedDataParallel(Model().to(device))
        return model, ZeroRedundancyOptimizer(model.parameters(), optimizer_class=AdaMod, **OPTIONS)

    model, optimizer = make()
    train(model, optimizer, STEPS[:2], device)
    # A checkpoint: gathered on the first rank, given to all, loaded by new ones.
    optimizer.consolidate_state_dict(to=0)
    file = io.BytesIO()
    if distributed.get_rank() == 0:
        torch.save([model.state_dict(), optimizer.state_dict()], file)
    sent = [file.getvalue()]
    distributed.broadcast_object_list(sent, src=0)
    weights, states = torch.load(io.BytesIO(sent[0]), weights_only=True)
    model, optimizer = make()
    model.load_state_dict(weights)
    optimizer.load_state_dict(states)
    train(model, optimizer, STEPS[2:], device)
    plain, expected = train_plainly(STEPS, device)

    assert isinstance(optimizer.optim, AdaMod)
    mine = [p for group in optimizer.optim.param_groups for p in group["params"]]
    twin_of = dict(zip(model.parameters(), plain.parameters(), strict=True))
    assert 0 < len(mine) < len(twin_of)
    assert_same(mine, optimizer.optim, [twin_of[param] for param in mine], expected)
    for param, twin in twin_of.items():
        assert torch.equal(param, twin)


def test_zero_redundancy_optimizer_equals_one_process(run: Callable[..., None]) -> None:
    run(train_zero, 2)
