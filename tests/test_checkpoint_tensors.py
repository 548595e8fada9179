"""State dicts through files: torch.load with weights_only=True, and safetensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_state_dicts as foreign
import pytest
import torch
from helpers import (
    SHAPES,
    assert_same_bits,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train,
)

from adamod_fused import AdaMod
from adamod_fused.checkpoint import convert, export, from_tensors, to_tensors

StateDict = dict[str, Any]


def installed(module: str = "safetensors") -> Any:
    return pytest.importorskip(module, reason="safetensors, of the extra `test`, is not installed")


def by_torch(state_dict: StateDict, path: Path) -> StateDict:
    torch.save(state_dict, path)
    return torch.load(path, weights_only=True)


def read_safetensors(path: Path) -> StateDict:
    with installed().safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        return from_tensors(tensors, file.metadata())


def by_safetensors(state_dict: StateDict, path: Path) -> StateDict:
    tensors, metadata = to_tensors(state_dict)
    installed("safetensors.torch").save_file(tensors, path, metadata)
    return read_safetensors(path)


WAYS: dict[str, Callable[[StateDict, Path], StateDict]] = {
    "torch": by_torch,
    "safetensors": by_safetensors,
}


def assert_same_state_dict(actual: StateDict, expected: StateDict) -> None:
    assert actual["param_groups"] == expected["param_groups"]
    assert list(actual["state"]) == list(expected["state"])
    for key, entries in expected["state"].items():
        assert actual["state"][key].keys() == entries.keys()
        for name, tensor in entries.items():
            assert_same_bits(actual["state"][key][name], tensor, f"{name} of {key}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_training_goes_on_from_a_file_bit_for_bit(
    dtype: torch.dtype, way: str, backend: str, tmp_path: Path
) -> None:
    whole, first = make_optimizer(dtype, backend=backend), make_optimizer(dtype, backend=backend)
    train(whole, range(5))
    train(first, range(2))
    resumed = make_optimizer(dtype, seed=9, backend=backend)
    with torch.no_grad():
        for param, saved in zip(params_of(resumed), params_of(first), strict=True):
            param.copy_(saved)
    loaded = WAYS[way](first.state_dict(), tmp_path / "optimizer")
    assert_same_state_dict(loaded, first.state_dict())
    resumed.load_state_dict(loaded)
    train(resumed, range(2, 5))
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_converted_and_exported_goes_through_files(way: str, tmp_path: Path) -> None:
    adam = torch.optim.Adam(random_params(*SHAPES), lr=0.1)
    train(adam, range(2))
    converted = convert(WAYS[way](adam.state_dict(), tmp_path / "adam"), "torch")
    assert_same_state_dict(WAYS[way](converted, tmp_path / "adamod"), converted)
    exported = export(converted)
    assert_same_state_dict(WAYS[way](exported, tmp_path / "adamw"), exported)


def test_foreign_dicts_with_integer_steps_go_through_torch_files(tmp_path: Path) -> None:
    for given, source in ((foreign.authors("gamma"), "authors"), (foreign.adam(), "torch")):
        loaded = by_torch(given, tmp_path / "foreign")
        assert_same_state_dict(convert(loaded, source), convert(given, source))


def test_parameters_without_state_and_names_and_dots(tmp_path: Path) -> None:
    names = ("layer.0.weight", "layer.0.bias", "head")
    optimizer = AdaMod(zip(names, random_params((2, 3), (3,), ()), strict=True), beta3=0.1)
    set_random_grads(params_of(optimizer)[:2], 0)
    optimizer.step()
    state_dict = optimizer.state_dict()
    assert_same_state_dict(by_safetensors(state_dict, tmp_path / "indices"), state_dict)
    # As torch.distributed.checkpoint names parameters.
    named = {
        "state": {names[key]: entries for key, entries in state_dict["state"].items()},
        "param_groups": [{**state_dict["param_groups"][0], "params": list(names)}],
    }
    assert_same_state_dict(by_safetensors(named, tmp_path / "names"), named)
    tensors, _ = to_tensors(named)
    assert "layer.0.weight.exp_avg_lr" in tensors


def test_what_is_given_is_not_changed_and_what_need_not_be_is_not_copied() -> None:
    optimizer = make_optimizer()
    train(optimizer, range(1))
    given = optimizer.state_dict()
    given["param_groups"][0]["lr"] = torch.tensor(0.25)
    before = copy.deepcopy(given)
    tensors, metadata = to_tensors(given)
    assert_same_state_dict(given, before)
    assert tensors["0.exp_avg"].data_ptr() == given["state"][0]["exp_avg"].data_ptr()
    assert from_tensors(tensors, metadata)["param_groups"][0]["lr"] == 0.25


def test_a_layout_that_files_do_not_hold_is_made_contiguous(tmp_path: Path) -> None:
    param = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = AdaMod([param])
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert not optimizer.state[param]["exp_avg"].is_contiguous()
    assert_same_state_dict(
        by_safetensors(optimizer.state_dict(), tmp_path / "file"), optimizer.state_dict()
    )


def test_a_negated_view_is_written_by_value(tmp_path: Path) -> None:
    """Files hold memory, in which the elements have the other sign."""
    given = make_optimizer()
    train(given, range(1))
    state_dict = copy.deepcopy(given.state_dict())
    scalar = state_dict["state"][1]["exp_avg"]
    state_dict["state"][1]["exp_avg"] = torch.complex(scalar * 0, -scalar).conj().imag
    read = by_safetensors(state_dict, tmp_path / "file")["state"][1]["exp_avg"]
    assert_same_bits(read, scalar)


# Damaged and foreign files; torch's truncated ones: test_checkpoint_crashes.py


def saved(path: Path) -> bytes:
    optimizer = make_optimizer()
    train(optimizer, range(1))
    by_safetensors(optimizer.state_dict(), path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999], ids=str)
def test_truncated_safetensors_do_not_load(kept: float, tmp_path: Path) -> None:
    data = saved(tmp_path / "file")
    (tmp_path / "file").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(installed().SafetensorError, match=r"[Hh]eader|incomplete|[Ff]ile"):
        read_safetensors(tmp_path / "file")


def test_a_models_file_is_not_an_optimizers(tmp_path: Path) -> None:
    for metadata, found in ((None, "None"), ({"format": "pt"}, "'pt'")):
        save_file = installed("safetensors.torch").save_file
        save_file(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model", metadata)
        with pytest.raises(ValueError, match=f"says format {found} .*not? optimizer's state"):
            read_safetensors(tmp_path / "model")


def test_tensors_missing_or_too_many_are_named() -> None:
    tensors, metadata = to_tensors(make_stepped())
    del tensors["1.exp_avg_sq"]
    with pytest.raises(ValueError, match=r"1\.exp_avg_sq missing, none too many; load all"):
        from_tensors(tensors, metadata)
    tensors, _ = to_tensors(make_stepped())
    with pytest.raises(ValueError, match=r"none missing, head\.weight too many"):
        from_tensors({**tensors, "head.weight": torch.ones(1)}, metadata)


def make_stepped() -> StateDict:
    optimizer = make_optimizer()
    train(optimizer, range(1))
    return optimizer.state_dict()


DAMAGED = {
    "no groups": ("param_groups", None, "KeyError"),
    "no names": ("tensors", None, "KeyError"),
    "half of JSON": ("param_groups", '[{"lr": 0.', "JSONDecodeError"),
    "groups without params": ("param_groups", "[{}]", "KeyError"),
    "a number": ("param_groups", "7", "TypeError"),
    "a group lost": ("param_groups", '[{"params": [0]}]', "no param group lists parameter '1'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_metadata_is_an_error(case: str) -> None:
    key, value, message = DAMAGED[case]
    tensors, metadata = to_tensors(make_stepped())
    metadata = {k: v for k, v in {**metadata, key: value}.items() if v is not None}
    with pytest.raises(ValueError, match=f"metadata is damaged.*{message}"):
        from_tensors(tensors, metadata)


def test_what_does_not_fit_into_such_files_is_an_error() -> None:
    with pytest.raises(TypeError, match="step of parameter 0 must be a tensor, got 2"):
        to_tensors(foreign.authors())
    stepped = make_stepped()
    stepped["param_groups"][1]["hook"] = print
    with pytest.raises(TypeError, match=r"hook of param group 1 cannot be kept: .*serializable"):
        to_tensors(stepped)
    twice = {"state": {}, "param_groups": [{"params": [1, "1"]}]}
    with pytest.raises(ValueError, match="two parameters have keys that read the same"):
        to_tensors(twice)
    with pytest.raises(ValueError, match="lacks 'state'"):
        to_tensors({})


def test_metadata_is_strings_and_says_what_it_is() -> None:
    _, metadata = to_tensors(make_stepped())
    assert {type(value) for value in metadata.values()} == {str}
    assert metadata["format"] == "adamod_fused.checkpoint 1"
    assert json.loads(metadata["param_groups"])[0]["beta3"] == 0.9
