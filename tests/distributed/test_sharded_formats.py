"""States in few bits and weights in parts on shards: what a rank has decides no bit."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import OPTIONS, STATES, assert_same_bits, random_params, set_random_grads
from torch import distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard, distribute_tensor
from training import full, kernels_alone, shard, train

from adamod_fused import AdaMod
from adamod_fused.dtensor import first_index
from adamod_fused.formats import REMAINDER, STATE_FORMATS

BFLOAT16 = torch.bfloat16
ANYHOW = ((8, 6), (7, 5), (5,), (1, 9))  # even, uneven, fewer rows than ranks
IN_BLOCKS = ((8, 32), (7, 64), (1, 32))
CASES = [
    ("fp32", "split", ANYHOW),
    ("fp32", "stochastic", ANYHOW),
    ("16bit", "split", IN_BLOCKS),
    ("8bit", "stochastic", IN_BLOCKS),
]


def keywords_of(state_format: str, weight_format: str) -> dict[str, Any]:
    named = {"state_format": state_format, "weight_format": weight_format}
    return {**OPTIONS, **named, "min_coded_numel": 0, "seed": 3}


def step_shards(device: str, state_format: str, weight_format: str, shapes: Any) -> None:
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    wholes = random_params(*shapes, dtype=BFLOAT16)
    wholes = [torch.nn.Parameter(whole.detach().to(device)) for whole in wholes]
    shards = [torch.nn.Parameter(distribute_tensor(w.detach(), mesh, [Shard(0)])) for w in wholes]
    keywords = keywords_of(state_format, weight_format)
    plain, cut = AdaMod(wholes, **keywords), AdaMod(shards, **keywords)
    for step in range(3):
        set_random_grads(wholes, step)
        for whole, part in zip(wholes, shards, strict=True):
            whole.grad = whole.grad.to(device)
            part.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
        with kernels_alone():
            plain.step()
            cut.step()
    saved, expected = cut.state_dict()["state"], plain.state_dict()["state"]
    for i, (whole, part) in enumerate(zip(wholes, shards, strict=True)):
        assert_same_bits(full(part.detach()), whole.detach())
        assert saved[i].keys() == expected[i].keys()
        for name, value in expected[i].items():
            assert_same_bits(full(saved[i][name]).to(value.dtype), value, name)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(("state_format", "weight_format", "shapes"), CASES)
def test_shards_step_as_the_whole_does(
    run: Callable[..., None], world_size: int, state_format: str, weight_format: str, shapes: Any
) -> None:
    run(step_shards, world_size, state_format, weight_format, shapes)


def find_first_indices(device: str) -> None:
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    mesh = init_device_mesh(device, (world_size,))
    numbers = torch.arange(35, device=device).view(7, 5)
    rows = distribute_tensor(numbers, mesh, [Shard(0)])
    local = rows.to_local()
    if local.numel():
        assert first_index(rows, local.stride()) == local.flatten()[0]
    assert first_index(rows, (1, local.shape[0])) == 0  # in columns they are no run
    columns = distribute_tensor(numbers, mesh, [Shard(1)])
    assert first_index(columns, columns.to_local().stride()) == 0
    both = init_device_mesh(device, (world_size // 2, 2))
    cut = distribute_tensor(numbers, both, [Shard(0), Shard(1)])
    assert first_index(cut, cut.to_local().stride()) == 0
    assert first_index(numbers, (5, 1)) == 0
    assert 0 <= rank < world_size


def test_where_a_shard_begins(run: Callable[..., None]) -> None:
    run(find_first_indices, 4)


def make(device: str, formats: tuple[str, str]) -> tuple[Any, AdaMod]:
    model = shard(device, BFLOAT16)
    return model, AdaMod(model.parameters(), **keywords_of(*formats))


def values_of(optimizer: AdaMod) -> dict[str, torch.Tensor]:
    saved = optimizer.state_dict()["state"]
    names = [(i, name) for i in saved for name in saved[i] if name != "step"]
    return {f"{i}.{name}": full(saved[i][name]) for i, name in names}


def save(device: str, folder: Path, formats: tuple[str, str]) -> None:
    model, optimizer = make(device, formats)
    train(model, optimizer, range(3), device)
    states = get_optimizer_state_dict(model, optimizer)
    dcp.save({"model": get_model_state_dict(model), "optimizer": states}, checkpoint_id=folder)
    values = values_of(optimizer)
    if distributed.get_rank() == 0:
        torch.save(values, folder / "values.pt")


def resume(device: str, folder: Path, formats: tuple[str, str]) -> None:
    model, optimizer = make(device, formats)
    with kernels_alone():
        states = get_optimizer_state_dict(model, optimizer)
        state = {"model": get_model_state_dict(model), "optimizer": states}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    values, saved = values_of(optimizer), torch.load(folder / "values.pt", weights_only=True)
    assert values.keys() == saved.keys()
    for name, value in values.items():
        # In other blocks a value may be out of the range of its neighbours.
        if formats[0] != "8bit" or name.endswith(REMAINDER):
            assert_same_bits(value, saved[name].to(device), name)
        else:
            same = value == saved[name].to(device)
            assert same.float().mean() > 0.8, name
    train(model, optimizer, range(3, 5), device)
    assert all(optimizer.state[p]["exp_avg"].dtype.itemsize < 4 for p in model.parameters())
    assert set(STATES) <= optimizer.state[next(model.parameters())].keys()


@pytest.mark.parametrize("formats", [("16bit", "split"), ("8bit", "stochastic")], ids=str)
def test_a_checkpoint_of_four_ranks_continues_on_two(
    run: Callable[..., None], tmp_path: Path, formats: tuple[str, str]
) -> None:
    run(save, 4, tmp_path, formats)
    run(resume, 2, tmp_path, formats)


STORED = [(state, weight) for state in STATE_FORMATS for weight in ("plain", "split")]
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def load_flat(device: str) -> None:
    model = shard(device, BFLOAT16)
    saved = {}
    for formats in STORED:
        optimizer = AdaMod(model.parameters(), **keywords_of(*formats))
        train(model, optimizer, range(2), device)
        saved[formats] = get_optimizer_state_dict(model, optimizer, options=FLAT)
    model.zero_grad()  # so that torch makes the states itself
    for before, after in itertools.product(STORED, STORED):
        optimizer = AdaMod(model.parameters(), **keywords_of(*after))
        # A load takes over the tensors that it is given.
        set_optimizer_state_dict(model, optimizer, copy.deepcopy(saved[before]), options=FLAT)
        for name, param in model.named_parameters():
            entries = optimizer.state[param]
            assert entries["step"] == 2, (before, after)
            if after[0] == "fp32":
                value = saved[before][f"state.{name}.exp_avg_lr"].to_local().float()
                assert_same_bits(entries["exp_avg_lr"].to_local(), value, str((before, after)))
            assert (REMAINDER in entries) == (after[1] == "split")
    train(model, optimizer, range(1), device)


def test_flat_state_dicts_load_into_every_format(run: Callable[..., None]) -> None:
    run(load_flat, 2)


def load_in_place_alone(device: str, folder: Path, formats: tuple[str, str]) -> None:
    model, optimizer = make(device, formats)
    train(model, optimizer, range(2), device)
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder)
    dcp.load(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder)
    with pytest.raises(RuntimeError, match=r"written in place .*set_optimizer_state_dict"):
        train(model, optimizer, range(1), device)
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(1), device)


@pytest.mark.parametrize("formats", [("8bit", "plain"), ("fp32", "split")], ids=str)
def test_a_step_after_a_load_in_place_alone_raises(
    run: Callable[..., None], tmp_path: Path, formats: tuple[str, str]
) -> None:
    run(load_in_place_alone, 2, tmp_path, formats)


def edit_states(device: str, state_format: str) -> None:
    model, optimizer = make(device, (state_format, "split"))
    train(model, optimizer, range(2), device)
    before = values_of(optimizer)
    for param in model.parameters():
        with optimizer.state_values(param) as states:
            assert states["exp_avg"].placements == param.placements
            states["exp_avg"].zero_()
    after = values_of(optimizer)
    for name, value in before.items():
        expected = torch.zeros_like(value) if name.endswith(".exp_avg") else value
        assert_same_bits(after[name], expected, name)
    old = next(model.parameters())
    new = torch.nn.Parameter(old.detach().clone())
    optimizer.replace_param(old, new, lambda name, values: values * (1 if name == REMAINDER else 2))
    replaced = {name: value for name, value in values_of(optimizer).items() if name[:2] == "0."}
    for name, value in replaced.items():
        assert_same_bits(value, after[name] * (1 if name.endswith(REMAINDER) else 2), name)
    assert next(iter(optimizer.state[new].values())) == 2


@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_states_of_shards_are_edited_by_value(run: Callable[..., None], state_format: str) -> None:
    run(edit_states, 2, state_format)


def step_fsdp1(device: str, is_original: bool, state_format: str) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 48), torch.nn.Linear(48, 5)).to(device)
    where = torch.device(device)
    model = FullyShardedDataParallel(layers, use_orig_params=is_original, device_id=where)
    keywords = keywords_of(state_format, "plain")
    if is_original:
        for least in (1, 4096):
            with pytest.raises(ValueError, match=r"min_coded_numel=.* use fully_shard \(FSDP2\)"):
                AdaMod(model.parameters(), **(keywords | {"min_coded_numel": least}))
    else:
        keywords["min_coded_numel"] = 300
    optimizer, loaded = (AdaMod(model.parameters(), **keywords) for _ in range(2))
    model(torch.ones(2, 16, device=device)).sum().backward()
    optimizer.step()
    kinds = {entries["exp_avg"].dtype.itemsize for entries in optimizer.state.values()}
    assert kinds <= {STATE_FORMATS[state_format]}
    saved = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    flat = FullyShardedDataParallel.optim_state_dict_to_load(model, loaded, saved)
    loaded.load_state_dict(flat)
    for param, entries in optimizer.state.items():
        # Not the values: on a CPU torch gathers all states of a parameter into one buffer.
        kept = {name: (value.dtype, value.shape) for name, value in entries.items()}
        assert kept == {n: (v.dtype, v.shape) for n, v in loaded.state[param].items()}
    loaded.step()


@pytest.mark.parametrize("state_format", ["8bit", "16bit"])
@pytest.mark.parametrize("is_original", [True, False])
def test_parts_of_fsdp1_are_coded_alike_on_all_ranks(
    run: Callable[..., None], is_original: bool, state_format: str
) -> None:
    run(step_fsdp1, 2, is_original, state_format)
