"""The run log of several ranks: the first one writes, the others do not touch the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import OPTIONS
from torch import distributed
from training import backward, shard

from adamod_fused import AdaMod
from adamod_fused.tracking import RunLog, read

STEPS = 6


def log_steps(device: str, folder: Path) -> None:
    rank = distributed.get_rank()
    model = shard(device)
    optimizer = AdaMod(model.named_parameters(), **OPTIONS, track_bound=2)
    log = RunLog(folder / str(rank))
    for step in range(STEPS):
        model.zero_grad()
        backward(model, step, device)
        optimizer.step()
        if rank == step % distributed.get_world_size():  # whoever does so half-way
            log = RunLog(folder / str(rank))
        log.log(optimizer, torch.tensor(float(rank), device=device))
    with pytest.raises(TypeError, match="loss must be a number"):
        log.log(optimizer, "low")
    assert log.path.exists() == log.path.parent.exists() == (rank == 0)


def test_the_first_rank_writes(run: Callable[..., None], tmp_path: Path) -> None:
    run(log_steps, 2, tmp_path)
    entries = read(tmp_path / "0")
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    assert {entry["loss"] for entry in entries} == {0.0}
    assert [entry["step"] for entry in entries if "rows" in entry] == [1, 3, 5]


def outlive_the_group(device: str, folder: Path) -> None:
    optimizer, log = AdaMod([torch.nn.Parameter(torch.ones(3))], track_bound=1), RunLog(folder)
    log.log(optimizer, 1.0, step=1)
    is_there, distributed.is_initialized = distributed.is_initialized, lambda: False
    try:
        log.log(optimizer, 2.0, step=2)
    finally:
        distributed.is_initialized = is_there


def test_the_others_do_not_write_either_once_the_group_is_gone(
    run: Callable[..., None], tmp_path: Path
) -> None:
    run(outlive_the_group, 2, tmp_path)
    assert len((tmp_path / "bound_stats.jsonl").read_text().splitlines()) == 2
