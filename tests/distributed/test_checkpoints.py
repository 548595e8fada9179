"""torch.distributed.checkpoint: saved on 4 ranks, continued on 2 and on 1, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import OPTIONS
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from training import Model, assert_same, kernels_alone, shard, train, train_plainly

from adamod_fused import AdaMod

BEFORE, AFTER = range(3), range(3, 5)
ALL = range(5)


def make(device: str, *, sharded: bool, dtype: torch.dtype) -> tuple[nn.Module, AdaMod]:
    model = shard(device, dtype) if sharded else Model().to(device, dtype)
    return model, AdaMod(model.parameters(), **OPTIONS)


def save(device: str, folder: Path, options: StateDictOptions, dtype: torch.dtype) -> None:
    model, optimizer = make(device, sharded=True, dtype=dtype)
    train(model, optimizer, BEFORE, device)
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    dcp.save(state, checkpoint_id=folder)


def resume(
    device: str, folder: Path, options: StateDictOptions, dtype: torch.dtype, sharded: bool
) -> None:
    model, optimizer = make(device, sharded=sharded, dtype=dtype)
    with kernels_alone():  # it steps, with lr = 0, to have states that it can load into
        state = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        }
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    train(model, optimizer, AFTER, device)
    plain, expected = train_plainly(ALL, device, dtype)
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flat", [False, True])
def test_a_checkpoint_of_four_ranks_continues_on_fewer(
    run: Callable[..., None], tmp_path: Path, flat: bool, dtype: torch.dtype
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    folder = tmp_path / "checkpoint"
    run(save, 4, folder, options, dtype)
    run(resume, 2, folder, options, dtype, True)
    run(resume, 1, folder, options, dtype, True)
    run(resume, 1, folder, options, dtype, False)


def save_whole(device: str, file: Path) -> None:
    model, optimizer = make(device, sharded=True, dtype=torch.float32)
    train(model, optimizer, BEFORE, device)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    if distributed.get_rank() == 0:
        torch.save(state, file)


def resume_whole(device: str, file: Path) -> None:
    model, optimizer = make(device, sharded=True, dtype=torch.float32)
    state = torch.load(file, weights_only=True)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    train(model, optimizer, AFTER, device)
    plain, expected = train_plainly(ALL, device)
    assert_same(model.parameters(), optimizer, plain.parameters(), expected)


def test_a_whole_checkpoint_in_one_file_continues_on_shards(
    run: Callable[..., None], tmp_path: Path
) -> None:
    run(save_whole, 4, tmp_path / "checkpoint.pt")
    run(resume_whole, 2, tmp_path / "checkpoint.pt")


def load_what_does_not_fit(device: str) -> None:
    model, optimizer = make(device, sharded=True, dtype=torch.float32)
    train(model, optimizer, BEFORE, device)
    _, plain = train_plainly(BEFORE, device)
    for target, saved, message in (
        (optimizer, plain.state_dict(), "is a plain tensor, the parameter a DTensor"),
        (plain, optimizer.state_dict(), "the parameter a plain tensor"),
    ):
        with pytest.raises(ValueError, match="set_optimizer_state_dict") as raised:
            target.load_state_dict(saved)
        assert message in str(raised.value)
    sharded = optimizer.state_dict()
    sharded["state"] = {
        i: {
            name: value.redistribute(placements=[torch.distributed.tensor.Replicate()])
            if isinstance(value, DTensor)
            else value
            for name, value in states.items()
        }
        for i, states in sharded["state"].items()
    }
    with pytest.raises(ValueError, match="set_optimizer_state_dict"):
        optimizer.load_state_dict(sharded)
    train(model, optimizer, AFTER, device)  # unchanged
    after, expected = train_plainly(ALL, device)
    assert_same(model.parameters(), optimizer, after.parameters(), expected)


def test_states_cut_in_another_way_are_refused(run: Callable[..., None]) -> None:
    run(load_what_does_not_fit, 2)
