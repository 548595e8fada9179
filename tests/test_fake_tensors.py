"""Tensors without values: steps of them make states and do nothing else, in any format."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import Snapshot, random_params, set_random_grads, train
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from adamod_fused import AdaMod, functional

FORMATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "8bit": {"state_format": "8bit", "weight_format": "split", "min_coded_numel": 0},
    "16bit": {"state_format": "16bit", "weight_format": "stochastic", "min_coded_numel": 0},
}


@pytest.fixture(params=FORMATS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FORMATS[request.param]


def empty_params(device: str = "cpu") -> list[nn.Parameter]:
    made = [torch.empty(shape, dtype=torch.bfloat16, device=device) for shape in ((3, 4), (40,))]
    params = [nn.Parameter(tensor) for tensor in made]
    for param in params:
        param.grad = torch.empty_like(param)
    return params


def described(value: Any) -> Any:
    """Tensors as their shapes and dtypes, without values, at any depth."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.stride()
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    return value


def states_of(optimizer: AdaMod) -> list[Any]:
    return [described(dict(entries)) for entries in optimizer.state.values()]


def twin(options: dict[str, Any]) -> AdaMod:
    """The same with real tensors, after a step."""
    optimizer = AdaMod(random_params((3, 4), (40,), dtype=torch.bfloat16), **options)
    train(optimizer, range(1))
    return optimizer


@pytest.mark.parametrize("keywords", [{}, {"backend": "cpu"}, {"fused": True}], ids=str)
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_fake_steps_make_the_states_of_real_ones(
    options: dict[str, Any], keywords: dict[str, Any], inside: bool
) -> None:
    mode = FakeTensorMode()
    with mode:
        params = empty_params()
    real = twin(options)
    with mode if inside else nullcontext():
        optimizer = AdaMod(params, **options, **keywords)
        for _ in range(2):
            norm = optimizer.clip_grad_norm_(1.0)
            optimizer.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.step()
    assert isinstance(norm, FakeTensor)
    assert described(norm) == (torch.float32, (), ())
    assert states_of(optimizer) == states_of(real)
    assert described(saved["state"]) == described(real.state_dict()["state"])
    made = [value for entries in optimizer.state.values() for value in entries.values()]
    assert all(isinstance(value, FakeTensor) for value in made)


def test_fake_tensors_of_a_device_that_is_not_here() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer = AdaMod(empty_params("cuda"), track_bound=True)
        optimizer.step()
        optimizer.step()
    assert optimizer.bound_stats() == []
    states = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert {name: str(value.device) for name, value in states.items()} == {
        "step": "cpu",
        "exp_avg": "cuda:0",
        "exp_avg_sq": "cuda:0",
        "exp_avg_lr": "cuda:0",
    }


def test_steps_on_meta_make_the_states_of_real_ones(options: dict[str, Any]) -> None:
    real = twin(options)
    optimizer = AdaMod(empty_params("meta"), **options, backend="reference")
    for _ in range(2):
        assert optimizer.clip_grad_norm_(1.0).is_meta
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert states_of(optimizer) == states_of(real)
    assert [entries["step"].item() for entries in optimizer.state.values()] == [3.0, 3.0]


@pytest.mark.parametrize("allows", [False, True])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_real_tensors_are_not_written_in_fake_mode(
    allows: bool, steps_before: int, backend: str
) -> None:
    params = random_params((3, 4), (5,))
    optimizer = AdaMod(params, backend=backend)
    train(optimizer, range(steps_before))
    set_random_grads(params, 1)
    before = Snapshot(optimizer)
    with FakeTensorMode(allow_non_fake_inputs=allows):
        message = "parameter 0 of group 0 is a real tensor, and FakeTensorMode is on"
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        with pytest.raises(RuntimeError, match=message):
            optimizer.clip_grad_norm_(1.0)
    before.assert_unchanged()
    optimizer.step()


def test_the_function_writes_nothing_real_in_fake_mode(backend: str) -> None:
    param, grad = torch.ones(3), torch.ones(3)
    states = [[torch.zeros(3)] for _ in range(3)]
    step = torch.zeros(())
    rates = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "beta3": 0.9, "eps": 1e-8, "weight_decay": 0.0}
    with FakeTensorMode(), pytest.raises(RuntimeError, match="FakeTensorMode is on"):
        functional.adamod([param], [grad], *states, [step], **rates, backend=backend)
    assert step == 0
    assert torch.equal(param, torch.ones(3))


@pytest.mark.parametrize("name", ["step", "exp_avg_sq"])
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_states_without_values_are_refused_for_real_parameters(name: str, kind: str) -> None:
    optimizer = twin({})
    state_dict = copy.deepcopy(optimizer.state_dict())
    entries = state_dict["state"][1]
    with FakeTensorMode() if kind == "fake" else nullcontext():
        device = "cpu" if kind == "fake" else "meta"
        entries[name] = torch.empty(entries[name].shape, device=device)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=f"{name} of parameter 1 of group 0 is .* no value"):
        optimizer.load_state_dict(state_dict)
    before.assert_unchanged()


def test_torchs_memory_tracker() -> None:
    tracker = pytest.importorskip("torch.distributed._tools.mem_tracker").MemTracker
    with FakeTensorMode():
        model = nn.Linear(1024, 1024, bias=False)
        optimizer = AdaMod(model.parameters())
        memory = tracker()
        memory.track_external(model, optimizer)
        with memory:
            for _ in range(2):
                model(torch.empty(1, 1024)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                memory.reset_mod_stats()
        held = memory.get_tracker_snapshot("current")[torch.device("cpu")]
    sizes = {str(kind).rpartition(".")[2]: size for kind, size in held.items()}
    assert 3 * 4 << 20 <= sizes["OPT"] < (3 * 4 << 20) + 4096
