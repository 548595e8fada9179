"""Subclasses of Tensor: kernels step those whose elements lie at their address, and no others."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    STATES,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
    train,
)
from torch import Tensor, nn

from adamod_fused import AdaMod

SHAPES = ((4, 3), (5,), (2, 6))  # the one in the middle stays a plain tensor
SECONDS = 60  # for the child process: importing torch and a process group of one take about 5


class Named(Tensor):
    """A plain subclass: it overrides nothing of how operators see its memory."""


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("grads_too", [False, True])
@pytest.mark.parametrize("backend", ["cpu", None])
def test_the_cpu_backend_serves_a_plain_subclass(backend: str | None, grads_too: bool) -> None:
    params = [nn.Parameter(param.detach().as_subclass(Named)) for param in random_params(*SHAPES)]
    assert {type(param) for param in params} == {Named}
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    expected = AdaMod(random_params(*SHAPES), **OPTIONS, backend="reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fallback to the reference would warn
        for step in range(3):
            set_random_grads(params, step)
            if grads_too:
                for param in params:
                    param.grad = param.grad.as_subclass(Named)
            optimizer.step()
    train(expected, range(3))
    assert_same_training(optimizer, expected)


def step_dtensors(folder: Path) -> None:
    """In a child process: DTensors on a group of one, stepped; results.pt says what came of it."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = (folder / "store").as_uri()
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))

    def shard(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor.detach(), mesh, [Shard(0)])

    def make(backend: str | None) -> AdaMod:
        first, plain, last = random_params(*SHAPES)
        params = [nn.Parameter(shard(first)), plain, nn.Parameter(shard(last))]
        return AdaMod(params, **OPTIONS, backend=backend)

    def run(optimizer: AdaMod) -> None:
        params = params_of(optimizer)
        twins = [torch.empty(shape) for shape in SHAPES]
        for step in range(3):
            set_random_grads(twins, step)
            for i, (param, twin) in enumerate(zip(params, twins, strict=True)):
                param.grad = twin.grad if i == 1 else shard(twin.grad)
            optimizer.step()

    def local(tensor: Tensor) -> Tensor:
        return getattr(tensor, "to_local", lambda: tensor)().detach()

    def contents(optimizer: AdaMod) -> list[dict[str, Tensor]]:
        states = [optimizer.state.get(param, {}) for param in params_of(optimizer)]
        return [
            {"param": local(param)} | {name: local(state[name]) for name in state}
            for param, state in zip(params_of(optimizer), states, strict=True)
        ]

    served = make(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(served)
    refused = make("cpu")
    try:
        run(refused)
        error = "no error"
    except Exception as raised:  # noqa: BLE001 - the parent process judges it
        error = f"{type(raised).__name__}: {raised}"
    results = {
        "types": [type(param).__name__ for param in params_of(served)],
        "served": contents(served),
        "warnings": [str(warning.message) for warning in caught],
        "refused": contents(refused),
        "error": error,
    }
    torch.save(results, folder / "results.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def stepped_dtensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    folder = tmp_path_factory.mktemp("dtensors")
    child = multiprocessing.get_context("spawn").Process(target=step_dtensors, args=(folder,))
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail(f"DTensors were not stepped within {SECONDS} seconds")
    assert child.exitcode == 0, "the traceback is on stderr"
    return torch.load(folder / "results.pt", weights_only=True)


def test_dtensors_run_on_the_reference_as_plain_tensors_do(
    stepped_dtensors: dict[str, Any],
) -> None:
    assert stepped_dtensors["types"] == ["DTensor", "Parameter", "DTensor"]
    expected = AdaMod(random_params(*SHAPES), **OPTIONS, backend="reference")
    train(expected, range(3))
    for param, actual in zip(params_of(expected), stepped_dtensors["served"], strict=True):
        assert list(actual) == ["param", "step", *STATES]
        for name, tensor in {"param": param, **expected.state[param]}.items():
            assert_same_bits(actual[name], tensor, name)


def test_dtensors_are_announced_by_one_warning(stepped_dtensors: dict[str, Any]) -> None:
    # torch may have warnings of its own about process groups.
    (warning,) = [w for w in stepped_dtensors["warnings"] if w.startswith("adamod_fused")]
    assert "slow pure-PyTorch reference" in warning
    assert "cpu: kernels read plain tensors, not DTensor" in warning


def test_a_backend_asked_for_dtensors_refuses_them_and_changes_nothing(
    stepped_dtensors: dict[str, Any],
) -> None:
    error = stepped_dtensors["error"]
    assert error.startswith("ValueError: backend 'cpu' cannot serve")
    assert "not DTensor; backend=None takes one that can" in error
    for param, actual in zip(random_params(*SHAPES), stepped_dtensors["refused"], strict=True):
        assert list(actual) == ["param"]
        assert_same_bits(actual["param"], param)
