"""``foreach``, ``fused`` and ``differentiable``, which torch.optim.Adam's configurations hold."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_training,
    params_of,
    random_params,
    train,
)

from adamod_fused import AdaMod, backends, execution

HARMLESS: tuple[dict[str, Any], ...] = (
    {"fused": True},
    {"fused": False},
    {"foreach": True},
    {"foreach": False, "fused": True},
    {"foreach": True, "fused": False, "differentiable": False},
)
REFUSED: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"fused": True, "foreach": True}, RuntimeError, "cannot be `True` together; leave one out"),
    ({"fused": True, "backend": "reference"}, ValueError, "fused=True .*'reference'.*leave one"),
    ({"differentiable": True}, RuntimeError, "differentiable=True .*torch.optim.Adam"),
    ({"differentiable": None}, TypeError, "differentiable must be True or False, got None"),
    ({"fused": "yes"}, TypeError, "fused must be None, True or False, got 'yes'"),
    ({"foreach": 1}, TypeError, "foreach must be None, True or False, got 1"),
)


def make(seed: int = 0, **keywords: Any) -> AdaMod:
    return AdaMod(random_params(*SHAPES, seed=seed), **OPTIONS, **keywords)


@pytest.mark.parametrize("keywords", HARMLESS, ids=str)
def test_the_same_bits_by_the_same_kernels(keywords: dict[str, Any]) -> None:
    with_keywords, without = make(**keywords), make()
    assert keywords.items() <= with_keywords.param_groups[0].items()
    train(with_keywords, range(3))
    train(without, range(3))
    assert_same_training(with_keywords, without)


def test_torch_refuses_fused_and_foreach_together_in_the_same_words() -> None:
    messages = []
    for optimizer in (AdaMod, torch.optim.Adam):
        with pytest.raises(RuntimeError) as caught:
            optimizer(random_params(*SHAPES), fused=True, foreach=True)
        messages.append(str(caught.value).rstrip("."))
    assert messages[0].startswith(messages[1])


def give_to_a_step(optimizer: AdaMod, keywords: dict[str, Any]) -> None:
    group = optimizer.param_groups[0]
    kept = {name: group[name] for name in keywords}
    group.update(keywords)
    try:
        optimizer.step()
    finally:
        group.update(kept)


Way = Callable[[AdaMod, dict[str, Any]], Any]
WAYS: dict[str, Way] = {
    "constructor": lambda _, keywords: make(**keywords),
    "group": lambda _, keywords: AdaMod([{"params": random_params((3,)), **keywords}], **OPTIONS),
    "add_param_group": lambda optimizer, keywords: optimizer.add_param_group(
        {"params": random_params((3,)), **keywords}
    ),
    "step": give_to_a_step,
}


@pytest.mark.parametrize(("keywords", "error", "message"), REFUSED, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_refused(keywords: dict[str, Any], error: type[Exception], message: str, way: str) -> None:
    optimizer = make()
    train(optimizer, range(1))
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        WAYS[way](optimizer, keywords)
    before.assert_unchanged()
    train(optimizer, range(1, 2))


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_BACKENDS", {})


@pytest.mark.usefixtures("no_kernels")
def test_fused_never_takes_the_reference() -> None:
    optimizer = make(fused=True)
    before = Snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"fused=True: no kernel serves torch\.float32.*cpu"):
            train(optimizer, range(1))
        before.assert_unchanged()
    optimizer.param_groups[0]["fused"] = None  # the remedy of the message
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(optimizer, range(1))
    expected = make(backend="reference")
    train(expected, range(1))
    assert_same_training(optimizer, expected)


def test_fused_is_each_groups_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two kinds of tensors only the one that the group with ``fused`` holds needs a kernel."""
    monkeypatch.setattr(backends._BACKENDS["cpu"], "dtypes", (torch.float32,), raising=False)
    single = random_params((3,))
    doubles = random_params((4,), (5,), dtype=torch.float64)
    groups = [{"params": single, "fused": True}, *({"params": [double]} for double in doubles)]
    optimizer = AdaMod(groups, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(optimizer, range(1))
    optimizer.param_groups[2]["fused"] = True
    with pytest.raises(RuntimeError, match=r"no kernel serves torch\.float64"):
        train(optimizer, range(1, 2))


def test_defaults_make_the_same_optimizer_again() -> None:
    """As ZeroRedundancyOptimizer and others build one: ``type(opt)(params, **opt.defaults)``."""
    first = make(fused=True, foreach=False)
    again = type(first)(random_params(*SHAPES), **first.defaults)
    assert again.defaults == first.defaults
    train(first, range(2))
    train(again, range(2))
    assert_same_training(again, first)


# Checkpoints


def without_keywords(state_dict: dict[str, Any]) -> dict[str, Any]:
    for group in state_dict["param_groups"]:
        for name in execution.DEFAULTS:
            del group[name]
    return state_dict


@pytest.mark.parametrize("saved", [{}, {"fused": None}, {"fused": False, "differentiable": True}])
@pytest.mark.parametrize("change", [without_keywords, lambda state_dict: state_dict])
def test_a_checkpoint_leaves_the_live_optimizers_as_they_are(
    saved: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    source, target = make(foreach=True), make(seed=1, fused=True)
    train(source, range(2))
    state_dict = copy.deepcopy(source.state_dict())
    state_dict["param_groups"][0].update(saved)
    target.load_state_dict(change(state_dict))
    group = target.param_groups[0]
    expected = execution.DEFAULTS | {"fused": True}
    assert {name: group[name] for name in execution.DEFAULTS} == expected
    with torch.no_grad():
        for param, value in zip(params_of(target), params_of(source), strict=True):
            param.copy_(value)
    train(target, range(2, 3))
    train(source, range(2, 3))
    assert_same_training(target, source)


def test_an_optimizer_pickled_before_there_were_these_keywords() -> None:
    old, twin = make(), make()
    train(old, range(1))
    train(twin, range(1))
    for name in execution.DEFAULTS.keys() - {"backend"}:
        del old.defaults[name], old.param_groups[0][name]
    loaded = pickle.loads(pickle.dumps(old))
    assert loaded.defaults == twin.defaults
    train(loaded, range(1, 3))
    train(twin, range(1, 3))
    assert_same_training(loaded, twin)
