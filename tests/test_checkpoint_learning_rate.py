"""The lr that a converted run goes on with, and the bounds that it gives: never held back."""

from __future__ import annotations

from typing import Any

import foreign_state_dicts as foreign
import pytest
import torch
from helpers import assert_same_bits, params_of, random_params, train
from torch import Tensor
from torch.optim import lr_scheduler

from adamod_fused import AdaMod
from adamod_fused.checkpoint import convert

TINY = 1e-9
PARAMS = torch.ones(3)


def bounds_at(lr: float, **changes: Any) -> Tensor:
    """Those of a run that was saved at ``lr``."""
    bounds: Tensor = convert(foreign.adam(lr=lr, **changes), "torch")["state"][0]["exp_avg_lr"]
    return bounds


def of_two_groups(*lrs: float) -> dict[str, Any]:
    saved = foreign.adam()
    saved["state"][1] = foreign.adam()["state"][0]
    group = saved["param_groups"][0]
    saved["param_groups"] = [{**group, "lr": lr, "params": [index]} for index, lr in enumerate(lrs)]
    return saved


@pytest.mark.parametrize("saved", [0.0, TINY, torch.tensor(0.0)], ids=str)
@pytest.mark.parametrize("number", [0.25, torch.tensor(0.25)], ids=str)
def test_the_bound_starts_at_the_lr_of_the_optimizer_that_goes_on(saved: Any, number: Any) -> None:
    adamod = AdaMod([PARAMS], lr=number)
    converted = convert(foreign.adam(lr=saved), "torch", optimizer=adamod)
    assert_same_bits(converted["state"][0]["exp_avg_lr"], bounds_at(0.25))
    (group,) = converted["param_groups"]
    assert (type(group["lr"]), group["lr"]) == (float, 0.25 if saved == 0 else TINY)


@pytest.mark.parametrize("saved", [0.0, TINY, 0.5], ids=str)
@pytest.mark.parametrize("lr", [0.25, [0.25], (0.25,), torch.tensor(0.25)], ids=str)
def test_an_lr_that_is_given_is_obeyed(lr: Any, saved: float) -> None:
    optimizer = AdaMod([PARAMS], lr=9.0)
    converted = convert(foreign.adam(lr=saved), "torch", lr=lr, optimizer=optimizer)
    assert_same_bits(converted["state"][0]["exp_avg_lr"], bounds_at(0.25))
    assert converted["param_groups"][0]["lr"] == 0.25


def test_a_higher_saved_lr_goes_on() -> None:
    """The optimizer's may be nothing but the default, which loading replaces."""
    converted = convert(foreign.adam(lr=0.5), "torch", optimizer=AdaMod([PARAMS]))
    assert_same_bits(converted["state"][0]["exp_avg_lr"], bounds_at(0.5))
    assert converted["param_groups"][0]["lr"] == 0.5


@pytest.mark.parametrize("way", ["optimizer", "lr"])
def test_each_group_has_its_own(way: str) -> None:
    adamod = AdaMod([{"params": [PARAMS], "lr": 0.5}, {"params": [PARAMS.clone()], "lr": 0.25}])
    arguments = {"optimizer": adamod} if way == "optimizer" else {"lr": [0.5, 0.25]}
    converted = convert(of_two_groups(0.0, TINY), "torch", **arguments)
    for key, lr in enumerate((0.5, 0.25)):
        assert_same_bits(converted["state"][key]["exp_avg_lr"], bounds_at(lr))
    lrs = [group["lr"] for group in converted["param_groups"]]
    assert lrs == ([0.5, TINY] if way == "optimizer" else [0.5, 0.25])


@pytest.mark.parametrize("saved", [0, 0.0, -0.0, torch.tensor(0.0)], ids=str)
@pytest.mark.parametrize("optimizer", [None, AdaMod([PARAMS], lr=0.0)], ids=["none", "at lr 0"])
def test_lr_0_and_no_other_is_an_error(optimizer: AdaMod | None, saved: Any) -> None:
    given = foreign.adam(lr=saved, initial_lr=0.5)
    message = r"param group 0 was saved at lr 0.*give lr,.*or optimizer.*bound_init='zero'"
    with pytest.raises(ValueError, match=message):
        convert(given, "torch", optimizer=optimizer)
    with pytest.raises(ValueError, match="param group 1 was saved at lr 0"):
        convert(of_two_groups(0.5, saved), "torch")


def test_lr_0_that_is_meant() -> None:
    zero = torch.zeros(3)
    warm_up = convert(foreign.adam(lr=0.0), "torch", bound_init="zero")
    assert_same_bits(warm_up["state"][0]["exp_avg_lr"], zero)
    given = convert(of_two_groups(0.5, 0.0), "torch", lr=[0.5, 0.0])
    assert_same_bits(given["state"][1]["exp_avg_lr"], zero)
    assert [group["lr"] for group in warm_up["param_groups"]] == [0.0]
    assert [group["lr"] for group in given["param_groups"]] == [0.5, 0.0]


def test_where_no_bound_is_made_lr_0_needs_no_other() -> None:
    never_stepped = foreign.adam(lr=0.0)
    never_stepped["state"] = {}
    assert convert(never_stepped, "torch")["param_groups"][0]["lr"] == 0.0
    adamods = foreign.authors()
    for group in adamods["param_groups"]:
        group["lr"] = 0.0
    for lr in (None, 0.25):
        converted = convert(adamods, "authors", lr=lr)
        for key, states in adamods["state"].items():
            assert_same_bits(converted["state"][key]["exp_avg_lr"], states["exp_avg_lr"])
        assert {group["lr"] for group in converted["param_groups"]} == {lr or 0.0}


@pytest.mark.parametrize(
    ("lr", "error", "message"),
    [
        (-1.0, ValueError, "param group 0: lr must be finite and >= 0, got -1.0"),
        (float("nan"), ValueError, "param group 0: lr must be finite and >= 0, got nan"),
        ("high", TypeError, "param group 0: lr must be a number, got 'high'"),
        ([0.5, 0.25], ValueError, "lr has 2 numbers, the state dict 1 param groups"),
    ],
)
def test_an_lr_that_cannot_be(lr: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(foreign.adam(), "torch", lr=lr)


@pytest.mark.parametrize("way", ["optimizer", "lr"])
@pytest.mark.parametrize("eta_min", [0.0, TINY])
def test_a_run_from_the_end_of_a_schedule_is_not_held_back(eta_min: float, way: str) -> None:
    """Its first step is as long as AdamW's, and a new scheduler starts from its lr."""
    adamw = torch.optim.AdamW(random_params((5,), dtype=torch.float64), lr=0.1, weight_decay=0.0)
    cosine = lr_scheduler.CosineAnnealingLR(adamw, T_max=20, eta_min=eta_min)
    for step in range(20):
        train(adamw, range(step, step + 1))
        cosine.step()
    assert adamw.param_groups[0]["lr"] == pytest.approx(eta_min, abs=1e-15)
    adamw.param_groups[0]["lr"] = eta_min

    params = [param.detach().clone().requires_grad_() for param in params_of(adamw)]
    adamod = AdaMod(params, lr=1e-3)
    arguments = {"optimizer": adamod} if way == "optimizer" else {"lr": 1e-3}
    adamod.load_state_dict(convert(adamw.state_dict(), "torch", **arguments))
    if way == "optimizer" and eta_min > 0:  # as saved, until the run says otherwise
        adamod.param_groups[0].update(lr=1e-3, initial_lr=1e-3)
    scheduler = lr_scheduler.LambdaLR(adamod, lambda epoch: 1.0)
    assert scheduler.base_lrs == [1e-3]
    adamw.param_groups[0]["lr"] = 1e-3
    before = params[0].detach().clone()
    for optimizer in (adamod, adamw):
        train(optimizer, range(20, 21))
    (by_adamw,) = params_of(adamw)
    length = (params[0] - before).norm() / (by_adamw - before).norm()
    assert 0.9 < length <= 1 + 1e-9


def test_a_schedulers_lr_is_the_one_that_it_begins_with() -> None:
    """A warm-up has the optimizer at lr 0 when the state dict is loaded."""
    adamod = AdaMod([PARAMS], lr=0.25)
    scheduler = lr_scheduler.LambdaLR(adamod, lambda epoch: epoch / 10)
    assert adamod.param_groups[0]["lr"] == 0.0
    saved = foreign.adam(lr=0.0, initial_lr=0.5)
    converted = convert(saved, "torch", optimizer=adamod)
    assert_same_bits(converted["state"][0]["exp_avg_lr"], bounds_at(0.25))
    adamod.load_state_dict(converted)
    assert adamod.param_groups[0]["initial_lr"] == 0.25
    adamod.step()
    scheduler.step()
    assert adamod.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("initial_lr", [0.75, torch.tensor(0.75)], ids=str)
def test_initial_lr_goes_over_with_the_saved_lr_and_not_with_another(initial_lr: Any) -> None:
    saved = foreign.adam(lr=0.5, initial_lr=initial_lr)
    (group,) = convert(saved, "torch")["param_groups"]
    assert (group["lr"], group["initial_lr"]) == (0.5, 0.75)
    (group,) = convert(saved, "torch", lr=0.25)["param_groups"]
    assert (group["lr"], group["initial_lr"]) == (0.25, 0.25)
    (group,) = convert(foreign.adam(lr=0.5), "torch", lr=0.25)["param_groups"]
    assert "initial_lr" not in group
