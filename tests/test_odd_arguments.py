"""Arguments of unusual types: what torch takes is taken, the rest is refused, changing nothing."""

from __future__ import annotations

import json
from collections import UserList
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers import OPTIONS, Snapshot, assert_same_training, random_params, train

from adamod_fused import AdaMod, release_gradients

CODED = {"state_format": "8bit", "min_coded_numel": 0}


def trained(groups: dict[str, Any] | None = None, **options: Any) -> AdaMod:
    params = random_params((3, 4), (40,))
    optimizer = AdaMod([{"params": params, **(groups or {})}], **{**OPTIONS, **options})
    train(optimizer, range(2))
    return optimizer


def nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


class ListConfig(Sequence[float]):
    """As OmegaConf's: a sequence that is no list and no tuple, and equals a list of its values."""

    def __init__(self, *values: float) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return ListConfig(*self._values[index]) if type(index) is slice else self._values[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]


SEQUENCES = [
    [0.5, 0.75],
    ListConfig(0.5, 0.75),
    UserList([0.5, 0.75]),
    np.array([0.5, 0.75]),
    np.array([0.5, 0.75], dtype=np.float32),
    np.float32([0.5, 0.75]).tolist(),
]


@pytest.mark.parametrize("betas", SEQUENCES, ids=lambda betas: type(betas).__name__)
@pytest.mark.parametrize("in_group", [False, True])
def test_betas_are_any_sequence_and_kept_as_a_tuple(
    betas: Any, in_group: bool, backend: str
) -> None:
    given = {"betas": betas}
    options = {"groups": given} if in_group else given
    optimizer = trained(**options, backend=backend)
    kept = optimizer.param_groups[0]["betas"]
    assert type(kept) is tuple
    assert [type(beta) for beta in kept] == [float, float]
    expected = trained(betas=(0.5, 0.75), backend=backend)
    assert_same_training(optimizer, expected)
    optimizer.param_groups[0]["betas"] = betas
    train(optimizer, range(2, 3))
    train(expected, range(2, 3))
    assert_same_training(optimizer, expected)


def test_betas_that_come_from_json_are_a_tuple_again() -> None:
    optimizer = trained()
    state_dict = optimizer.state_dict()
    state_dict["param_groups"] = json.loads(json.dumps(state_dict["param_groups"]))
    assert isinstance(state_dict["param_groups"][0]["betas"], list)
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["betas"] == OPTIONS["betas"]


@pytest.mark.parametrize(
    "lr",
    [
        np.float64(0.25),
        np.float32(0.25),
        np.array(0.25),
        Fraction(1, 4),
        torch.tensor(0.25),
        torch.tensor([0.25]),
        torch.tensor(0.25, requires_grad=True),
    ],
    ids=lambda lr: type(lr).__name__,
)
@pytest.mark.filterwarnings("error")
def test_a_number_of_any_type(lr: Any, backend: str) -> None:
    number = trained(lr=0.25, backend=backend)
    assert_same_training(trained(lr=lr, backend=backend), number)


def test_a_tensor_of_integers_as_a_number(backend: str) -> None:
    number = trained(lr=1.0, backend=backend)
    assert_same_training(trained(lr=torch.tensor(1), backend=backend), number)


@pytest.mark.parametrize(
    "make", [np.int64, np.uint8, torch.tensor], ids=["int64", "uint8", "tensor"]
)
def test_whole_numbers_of_any_type(make: Any, backend: str) -> None:
    given = {"seed": make(3), "min_coded_numel": make(8), "track_bound": make(1)}
    optimizer = trained(**CODED | given, backend=backend)
    expected = trained(**CODED | {"seed": 3, "min_coded_numel": 8}, backend=backend)
    assert_same_training(optimizer, expected)
    group = optimizer.param_groups[0]
    assert [type(group[name]) for name in ("seed", "min_coded_numel")] == [int, int]
    for each, seed in ((optimizer, make(200)), (expected, 200)):  # at a step, too
        each.param_groups[0]["seed"] = seed
        train(each, range(2, 3))
    assert_same_training(optimizer, expected)


def test_release_gradients_takes_numpys_integers() -> None:
    model = torch.nn.Linear(2, 2)
    release_gradients(model, AdaMod(model.parameters()), batch_numel=np.int64(4)).remove()


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("lr", 10**400, ValueError, "lr must be finite and >= 0, got 1000"),
    ("lr", 10**5000, ValueError, "lr must be finite and >= 0, got a value of type int"),
    ("lr", nested(), TypeError, "lr must be a number, got a value of type list"),
    ("lr", np.array([1.0, 2.0]), TypeError, r"lr must be a number, got array\("),
    ("betas", nested(), ValueError, "betas must be two numbers"),
    ("betas", (nested(), 0.9), TypeError, "beta1 must be a number"),
    ("betas", {0.5: 1, 0.75: 2}, ValueError, "betas must be two numbers"),
    ("betas", {0.5, 0.75}, ValueError, "betas must be two numbers"),
    ("betas", np.array([0.5, 0.6, 0.7]), ValueError, "betas must be two numbers"),
    ("variant", nested(), ValueError, "variant must be one of"),
    ("seed", 10**400, ValueError, "seed must be finite"),
    ("seed", np.float64(3), TypeError, "seed must be a whole number"),
    ("min_coded_numel", nested(), TypeError, "min_coded_numel must be a number"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"), BAD, ids=[f"{i}-{row[0]}" for i, row in enumerate(BAD)]
)
def test_bad_values_change_nothing(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AdaMod(random_params((3,)), **{**OPTIONS, name: value})
    optimizer = trained()
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": random_params((3,)), name: value})
    before.assert_unchanged()
    good, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], value
    with pytest.raises(error, match=message):
        optimizer.step()
    optimizer.param_groups[0][name] = good
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("maximize", True, 1),
        ("maximize", False, 0.0),
        ("fused", False, 0),
        ("foreach", True, 1.0),
        ("capturable", False, 0),
        ("differentiable", False, 0),
    ],
)
def test_a_bad_value_that_equals_a_good_one_is_refused(
    name: str, good: bool, bad: Any, backend: str
) -> None:
    optimizer = trained(**{name: good}, backend=backend)
    before = Snapshot(optimizer)
    optimizer.param_groups[0][name] = bad
    with pytest.raises(TypeError, match=f"{name} must be .*True"):
        optimizer.step()
    optimizer.param_groups[0][name] = good
    before.assert_unchanged()
    train(optimizer, range(1))


def test_a_param_group_without_parameters() -> None:
    with pytest.raises(ValueError, match=r"lacks 'params' \(it has 'lr', 'eps'\)"):
        AdaMod([{"lr": 0.1, "eps": 0.1}])


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_group_whose_check_fails_is_not_added(error: type[BaseException]) -> None:
    class Strange(AdaMod):
        @staticmethod
        def check_hyperparameters(values: dict[str, Any]) -> None:
            if "strange" in values:
                raise error

    optimizer = Strange(random_params((3,)))
    with pytest.raises(error):
        optimizer.add_param_group({"params": random_params((3,)), "strange": True})
    assert len(optimizer.param_groups) == 1


def test_a_parameter_appended_to_a_group_of_named_ones(backend: str) -> None:
    named, appended = random_params((3,), (5,))
    optimizer = AdaMod([("first", named)], backend=backend, track_bound=1)
    optimizer.param_groups[0]["params"].append(appended)
    train(optimizer, range(1))
    assert [row["name"] for row in optimizer.bound_stats()] == ["first", "0.1"]
    appended.grad = appended.grad.to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 1 of group 0 has layout"):
        optimizer.step()
