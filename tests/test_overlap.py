"""Tensors that share memory are refused whenever it arises; those that interleave are stepped."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from helpers import (
    OPTIONS,
    Snapshot,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
    train_step,
)
from torch import Tensor, nn

from adamod_fused import AdaMod, validation
from adamod_fused.overlap import overlaps_itself, share_memory

Spoil = Callable[[AdaMod, list[nn.Parameter]], None]


def elements(tensor: Tensor) -> list[int]:
    """The addresses of a tensor's elements, one by one."""
    steps = itertools.product(*(range(n) for n in tensor.shape))
    places = (sum(i * s for i, s in zip(index, tensor.stride(), strict=True)) for index in steps)
    return [tensor.data_ptr() + place * tensor.element_size() for place in places]


def test_what_shares_memory_is_found_exactly() -> None:
    """Against a list of all addresses, of random strided views of one buffer."""
    rng, buffer = random.Random(0), torch.zeros(400)
    answers = []
    for _ in range(600):
        views = []
        for _ in range(2):
            dims = rng.randint(0, 3)
            shape = [rng.randint(1, 4) for _ in range(dims)]
            strides = [rng.choice([0, 1, 2, 3, 4, 7, 12, 16, 20]) for _ in range(dims)]
            views.append(buffer.as_strided(shape, strides, rng.randint(0, 60)))
        a, b = map(elements, views)
        answers.append(bool({*a} & {*b}))
        assert share_memory(*views) == answers[-1], [(v.shape, v.stride()) for v in views]
        for view, found in zip(views, (a, b), strict=True):
            assert overlaps_itself(view) == (len({*found}) < len(found)), (
                view.shape,
                view.stride(),
            )
    assert 0.1 < sum(answers) / len(answers) < 0.9


def parameter_onto_another(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].data = params[1].data


def parameter_onto_a_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].data = optimizer.state[params[1]]["exp_avg"]


def state_onto_a_parameter_in_part(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    storage = torch.zeros(100)
    params[0].data = storage[:64]
    optimizer.state[params[1]]["exp_avg_sq"] = storage[36:]


def one_step_count_for_two(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[0]]["step"] = optimizer.state[params[1]]["step"]


def onto_one_without_a_gradient(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].data = params[1].data
    params[1].grad = None


def gradient_is_the_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].grad = params[0].detach()


def gradient_in_another_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].grad = params[1].detach()


def gradient_shifted(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    storage = torch.ones(65)
    params[0].data, params[0].grad = storage[:64], storage[1:]


def gradient_is_a_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].grad = optimizer.state[params[0]]["exp_avg"]


def kept_gradient_under_a_moved_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[1].data = params[0].grad


SHARED: list[tuple[Spoil, str]] = [
    (parameter_onto_another, "parameter 0 of group 0 and parameter 1 of group 0 share memory"),
    (parameter_onto_a_state, "parameter 0 of group 0 .*exp_avg of parameter 1|exp_avg of .* share"),
    (state_onto_a_parameter_in_part, "parameter 0 of group 0 and exp_avg_sq of parameter 1"),
    (one_step_count_for_two, "step of parameter 0 of group 0 and step of parameter 1"),
    (onto_one_without_a_gradient, "parameter 0 of group 0 and parameter 1 of group 0 share memory"),
    (
        gradient_is_the_parameter,
        "gradient of parameter 0 of group 0 shares memory with parameter 0",
    ),
    (gradient_in_another_parameter, "gradient of parameter 0 .* with parameter 1 of group 0"),
    (gradient_shifted, "gradient of parameter 0 of group 0 shares memory with parameter 0"),
    (gradient_is_a_state, "gradient of parameter 0 .* with exp_avg of parameter 0"),
    (kept_gradient_under_a_moved_parameter, "gradient of parameter 0 .* with parameter 1"),
]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("spoil", "message"), SHARED, ids=[spoil.__name__ for spoil, _ in SHARED])
def test_shared_memory_is_refused(spoil: Spoil, message: str, steps: int, backend: str) -> None:
    params = random_params((64,), (64,))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    set_random_grads(params, 0)
    if steps == 0:  # the states are there, and no plan
        optimizer.load_state_dict(_stepped(backend))
    for _ in range(steps):
        optimizer.step()
    spoil(optimizer, params)
    before = Snapshot(optimizer)
    for _ in range(2):  # refused again, not taken for known
        with pytest.raises(ValueError, match=message):
            optimizer.step()
    before.assert_unchanged()
    for param in params:
        param.data = torch.ones(64)
        optimizer.state.pop(param)
    train_step(optimizer, 1)


def _stepped(backend: str) -> dict[str, object]:
    other = AdaMod(random_params((64,), (64,)), **OPTIONS, backend=backend)
    train_step(other, 0)
    return other.state_dict()


def columns(kind: str) -> list[Tensor]:
    table = torch.zeros(6, 4)
    return {
        "interleaved": [table[:, :2], table[:, 2:]],
        "overlapping": [table[:, :3], table[:, 2:]],
        "overlapping itself": [table.view(-1).as_strided((6, 4), (3, 1))],
    }[kind]


@pytest.mark.parametrize("moved", [False, True])
def test_columns_of_one_matrix_are_stepped(moved: bool, backend: str) -> None:
    optimizers = []
    for views in (columns("interleaved"), [v.clone() for v in columns("interleaved")]):
        params = [nn.Parameter(torch.ones_like(v)) if moved else nn.Parameter(v) for v in views]
        optimizer = AdaMod(params, **OPTIONS, backend=backend)
        train_step(optimizer, 0)
        for param, view in zip(params, views, strict=True) if moved else ():
            param.data = view
        for seed in (1, 2):
            train_step(optimizer, seed)
        optimizers.append(optimizer)
    assert_same_training(*optimizers)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kind", ["overlapping", "overlapping itself"])
def test_views_that_share_elements_are_refused(kind: str, moved: bool, backend: str) -> None:
    views = columns(kind)
    if not moved:
        with pytest.raises(ValueError, match=r"share memory.*(the same Parameter|contiguous)"):
            train_step(AdaMod([nn.Parameter(v) for v in views], backend=backend), 0)
        return
    params = [nn.Parameter(torch.ones_like(view)) for view in views]
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    train_step(optimizer, 0)
    for param, view in zip(params, views, strict=True):
        param.data = view
    with pytest.raises(ValueError, match=r"share memory.*(the same Parameter|contiguous)"):
        train_step(optimizer, 1)


def test_gradients_may_share_memory_with_each_other(backend: str) -> None:
    params = random_params((64,), (64,))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    for _ in range(3):
        params[0].grad = params[1].grad = torch.ones(1).expand(64)
        optimizer.step()
    assert all(optimizer.state[param]["step"] == 3 for param in params_of(optimizer))


@pytest.mark.usefixtures("reader")
def test_memory_that_a_frozen_parameter_left_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient there is looked at once; the parameter may not come back to it."""
    params = random_params((64,), (64,))
    optimizer = AdaMod(params, **OPTIONS, backend="cpu")
    train_step(optimizer, 0)
    left = params[0].data
    params[0].data, params[0].grad = left.clone(), None
    params[1].grad = left
    looks: list[int] = []
    check = validation.check_disjoint
    monkeypatch.setattr(validation, "check_disjoint", lambda *a: (looks.append(1), check(*a)))
    for _ in range(3):
        optimizer.step()
    assert not looks
    params[0].data, params[0].grad = left, torch.ones(64)
    with pytest.raises(ValueError, match=r"gradient of parameter 1 .* with parameter 0"):
        optimizer.step()


@pytest.mark.usefixtures("reader")
def test_addresses_that_change_hands_are_no_overlap() -> None:
    """A parameter that is not stepped gives its memory away, and that one its own."""
    optimizers = []
    for backend in ("reference", "cpu"):
        params = random_params((64,), (64,))
        optimizer = AdaMod(params, **OPTIONS, backend=backend)
        train_step(optimizer, 0)
        params[0].data, params[1].data = params[1].data, params[0].data
        set_random_grads(params[:1], 1)
        params[1].grad = None
        optimizer.step()
        train_step(optimizer, 2)
        optimizers.append(optimizer)
    assert_same_training(*optimizers)
