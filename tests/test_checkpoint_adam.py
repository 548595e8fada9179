"""Runs of torch's Adam and AdamW that go on as AdaMod, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import foreign_state_dicts as foreign
import pytest
import torch
from helpers import (
    SHAPES,
    assert_same_bits,
    params_of,
    random_params,
    set_random_grads,
    train,
    train_step,
)
from torch import Tensor

from adamod_fused import AdaMod, reference
from adamod_fused.checkpoint import convert, export

OPTIONS = {"lr": 3e-2, "betas": (0.8, 0.95), "eps": 1e-6}
# The second group of make_groups.
SECOND = {"lr": 0.2, "eps": 1e-3, "maximize": True}


def make_groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], **SECOND}]


def make_adam(
    dtype: torch.dtype = torch.float32, kind: type = torch.optim.Adam, **options: Any
) -> torch.optim.Optimizer:
    return kind(make_groups(random_params(*SHAPES, dtype=dtype)), **OPTIONS, **options)


def make_adamod(like: torch.optim.Optimizer, **options: Any) -> AdaMod:
    """AdaMod with the parameters of an optimizer, in copies."""
    groups = [
        {"params": [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]}
        for group in like.param_groups
    ]
    return AdaMod(groups, **options)


IMPLEMENTATIONS = ({"foreach": False}, {"foreach": True}, {"fused": True})


@pytest.mark.parametrize("options", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_moments_steps_and_hyperparameters_go_over(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    adam = make_adam(dtype, **options)
    train(adam, range(3))
    adamod = make_adamod(adam, beta3=0.7)
    adamod.load_state_dict(convert(adam.state_dict(), "torch", optimizer=adamod))
    for param, ours in zip(params_of(adam), params_of(adamod), strict=True):
        state = adamod.state[ours]
        assert_same_bits(state["step"], torch.tensor(3.0))
        for name in ("exp_avg", "exp_avg_sq"):
            compute_dtype = reference.COMPUTE_DTYPES[dtype]
            assert_same_bits(state[name], adam.state[param][name].to(compute_dtype), name)
    first, second = adamod.param_groups
    assert OPTIONS.items() <= first.items()
    assert {**OPTIONS, **SECOND}.items() <= second.items()
    assert first["beta3"] == second["beta3"] == 0.7
    assert "amsgrad" not in first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_bound_starts_at_the_current_rate(variant: str, dtype: torch.dtype) -> None:
    """Both formulas in float64: the four roundings of float32 are less than 1e-6 relative."""
    adam = make_adam(dtype)
    train(adam, range(3))
    converted = convert(adam.state_dict(), "torch", variant=variant)
    for group in converted["param_groups"]:
        bc1, bc2 = 1 - group["betas"][0] ** 3, 1 - group["betas"][1] ** 3
        for key in group["params"]:
            v = converted["state"][key]["exp_avg_sq"].double()
            if variant == "paper":
                eta = group["lr"] / ((v / bc2).sqrt() + group["eps"])
            else:
                eta = group["lr"] * bc2**0.5 / bc1 / (v.sqrt() + group["eps"])
            bound = converted["state"][key]["exp_avg_lr"]
            assert bound.dtype == reference.COMPUTE_DTYPES[dtype]
            torch.testing.assert_close(bound.double(), eta, rtol=1e-6, atol=0)


def test_the_first_step_after_adam_by_hand() -> None:
    """Worked out on paper for each element; a few float64 roundings apart."""
    adam = foreign.adam()
    param = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    for name in ("exp_avg", "exp_avg_sq"):
        adam["state"][0][name] = adam["state"][0][name].double()
    adamod = AdaMod([param], beta3=0.75)
    adamod.load_state_dict(convert(adam, "torch", optimizer=adamod))
    param.grad = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    adamod.step()
    # step 3: bc2 = 1 - .75^3 = 37/64; step 4: bc1 = 1 - .5^4 = 15/16, bc2 = 1 - .75^4 = 175/256
    eta3 = 0.5 / ((0.25 * 64 / 37) ** 0.5 + 0.125)
    eta4 = 0.5 / (((0.75 * 0.25 + 0.25) * 256 / 175) ** 0.5 + 0.125)
    bound = 0.75 * eta3 + 0.25 * eta4
    assert eta4 < bound  # this element is not held back, and the next is
    expected = 1 - eta4 * (0.5 * 0.5 + 0.5) * 16 / 15
    assert param[0].item() == pytest.approx(expected, rel=1e-14)
    rate3 = 0.5 / ((4 * 64 / 37) ** 0.5 + 0.125)
    rate4 = 0.5 / ((0.75 * 4 * 256 / 175) ** 0.5 + 0.125)
    bound = 0.75 * rate3 + 0.25 * rate4
    assert bound < rate4
    assert param[1].item() == pytest.approx(1 + bound * 0.125 * 16 / 15, rel=1e-14)
    assert adamod.state[param]["exp_avg_lr"][2].item() == 0.5 / 0.125  # lr / eps


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_next_step_is_the_references_on_the_converted_states(
    variant: str, backend: str
) -> None:
    adam = make_adam()
    train(adam, range(3))
    adamod = make_adamod(adam, beta3=0.9, variant=variant, backend=backend)
    converted = convert(adam.state_dict(), "torch", optimizer=adamod, weight_decay=[0.1, 0.0])
    expected = []
    params = params_of(adamod)
    set_random_grads(params, 3)
    groups = [group for group in converted["param_groups"] for _ in group["params"]]
    for key, (param, group) in enumerate(zip(params, groups, strict=True)):
        names = ("lr", "betas", "beta3", "eps", "weight_decay", "variant", "maximize")
        scalars = reference.AdaMod.prepare(4, **{name: group[name] for name in names})
        copied = param.detach().clone()
        states = [converted["state"][key][name].clone() for name in reference.AdaMod.states]
        reference.step_(reference.AdaMod, scalars, copied, param.grad, states)
        expected.append((copied, *states))
    adamod.load_state_dict(converted)
    adamod.step()
    for param, tensors in zip(params, expected, strict=True):
        actual = (param, *(adamod.state[param][name] for name in reference.AdaMod.states))
        for a, b in zip(actual, tensors, strict=True):
            assert_same_bits(a.detach(), b)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_without_a_bound_the_run_is_adams_own(kind: type) -> None:
    """beta3 = 0 makes AdaMod Adam. A few float64 roundings in each of 4 steps: far below 1e-12."""
    decay = [0.0, 0.0] if kind is torch.optim.Adam else [0.3, 0.1]
    adam = make_adam(torch.float64, kind)
    for group, value in zip(adam.param_groups, decay, strict=True):
        group["weight_decay"] = value
    train(adam, range(3))
    adamod = make_adamod(adam)
    converted = convert(adam.state_dict(), "torch", beta3=0.0, weight_decay=decay)
    adamod.load_state_dict(converted)
    train(adamod, range(3, 7))
    train(adam, range(3, 7))
    for ours, theirs in zip(params_of(adamod), params_of(adam), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_run_in_flight_goes_on_or_warms_up_again() -> None:
    """The first step beside Adam's own: nearly as long, or 1 - beta3 of it."""
    adam = make_adam(torch.float64)
    train(adam, range(200))
    lengths = {}
    for bound_init in ("current", "zero"):
        adamod = make_adamod(adam)
        adamod.load_state_dict(convert(adam.state_dict(), "torch", bound_init=bound_init))
        before = params_of(adamod)[0].detach().clone()
        train(adamod, range(200, 201))
        lengths[bound_init] = (params_of(adamod)[0] - before).norm().item()
        assert adamod.param_groups[0]["beta3"] == 0.999
    before = params_of(adam)[0].detach().clone()
    train(adam, range(200, 201))
    adams = (params_of(adam)[0] - before).norm().item()
    assert 0.8 * adams < lengths["current"] <= adams * (1 + 1e-12)
    assert lengths["zero"] == pytest.approx(1e-3 * adams, rel=1e-6)


def test_zero_bounds_are_zeros() -> None:
    converted = convert(foreign.adam(), "torch", bound_init="zero")
    assert_same_bits(converted["state"][0]["exp_avg_lr"], torch.zeros(3))


def test_parameters_without_state_stay_without(backend: str) -> None:
    adam = make_adam()
    set_random_grads(params_of(adam)[:3], 0)
    adam.step()
    adamod = make_adamod(adam, backend=backend)
    adamod.load_state_dict(convert(adam.state_dict(), "torch"))
    assert list(adamod.state) == params_of(adamod)[:3]
    train_step(adamod, 1)
    assert [int(adamod.state[p]["step"]) for p in params_of(adamod)] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3), torch.tensor(3.0), torch.tensor([3.0])])
def test_steps_of_every_form(step: object) -> None:
    adam = foreign.adam()
    adam["state"][0]["step"] = step
    assert_same_bits(convert(adam, "torch")["state"][0]["step"], torch.tensor(3.0))


def test_a_state_that_was_never_stepped_has_no_rate_yet() -> None:
    adam = foreign.adam()
    adam["state"][0]["step"] = 0
    assert_same_bits(convert(adam, "torch")["state"][0]["exp_avg_lr"], torch.zeros(3))


def test_hyperparameters_in_tensors_become_numbers() -> None:
    tensors = {"lr": torch.tensor(0.5), "capturable": True, "maximize": False, "fused": None}
    betas = (torch.tensor(0.5), torch.tensor(0.75))
    converted = convert(foreign.adam(**tensors, betas=betas), "torch")
    (group,) = converted["param_groups"]
    assert (group["lr"], group["betas"]) == (0.5, (0.5, 0.75))
    assert type(group["lr"]) is float
    plain = convert(foreign.adam(), "torch")
    assert group == plain["param_groups"][0]
    bounds = [c["state"][0]["exp_avg_lr"] for c in (converted, plain)]
    assert_same_bits(*bounds)


# What comes from where


def test_an_argument_comes_before_the_dict_before_the_optimizer_before_the_default() -> None:
    options = {"beta3": 0.25, "variant": "released", "maximize": True, "lr": 9.0}
    param = torch.nn.Parameter(torch.zeros(3))
    adamod = AdaMod([param], **options)

    def group_of(state_dict: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        return convert(state_dict, "torch", **arguments)["param_groups"][0]

    group = group_of(foreign.adam())
    assert (group["beta3"], group["variant"], group["maximize"]) == (0.999, "paper", False)
    group = group_of(foreign.adam(), optimizer=adamod)
    assert (group["beta3"], group["variant"], group["maximize"]) == (0.25, "released", True)
    assert group["lr"] == 0.5
    group = group_of(foreign.adam(maximize=False), optimizer=adamod)
    assert group["maximize"] is False
    arguments = {"beta3": 0.125, "variant": "paper", "maximize": True, "weight_decay": 0.5}
    group = group_of(foreign.adam(maximize=False), optimizer=adamod, **arguments)
    assert arguments.items() <= group.items()


def test_each_group_of_the_optimizer_serves_its_own() -> None:
    adam = make_adam()
    train(adam, range(1))
    adamod = make_adamod(adam)
    adamod.param_groups[0]["beta3"], adamod.param_groups[1]["variant"] = 0.5, "released"
    first, second = convert(adam.state_dict(), "torch", optimizer=adamod)["param_groups"]
    assert (first["beta3"], first["variant"]) == (0.5, "paper")
    assert (second["beta3"], second["variant"]) == (0.999, "released")


def test_names_and_what_a_scheduler_keeps_go_along() -> None:
    extras = {"initial_lr": 1.5, "param_names": ["weight"], "mine": [1, 2]}
    given = foreign.adam(**extras)
    (group,) = convert(given, "torch")["param_groups"]
    assert extras.items() <= group.items()
    group["mine"].append(3)
    assert given["param_groups"][0]["mine"] == [1, 2]


def test_a_scheduler_goes_on() -> None:
    adam = make_adam()
    scheduler = torch.optim.lr_scheduler.StepLR(adam, 2, gamma=0.5)
    for i in range(3):
        train_step(adam, i)
        scheduler.step()
    adamod = make_adamod(adam)
    adamod.load_state_dict(convert(adam.state_dict(), "torch"))
    ours = torch.optim.lr_scheduler.StepLR(adamod, 2, gamma=0.5, last_epoch=2)
    ours.load_state_dict(scheduler.state_dict())
    for i in range(3, 6):
        for optimizer, its in ((adam, scheduler), (adamod, ours)):
            train_step(optimizer, i)
            its.step()
    lrs = [[group["lr"] for group in o.param_groups] for o in (adam, adamod)]
    assert lrs[0] == lrs[1] == [OPTIONS["lr"] / 8, SECOND["lr"] / 8]


# Nothing given is changed, nothing shared


def tensors_of(state_dict: dict[str, Any]) -> list[Tensor]:
    return [
        value
        for entries in state_dict["state"].values()
        for value in entries.values()
        if isinstance(value, Tensor)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (make_adam, lambda state_dict: convert(state_dict, "torch")),
        (lambda dtype: make_adamod(make_adam(dtype)), export),
    ],
    ids=["convert", "export"],
)
def test_what_is_given_stays_as_it_is_also_when_training_goes_on(
    make: Callable, change: Callable, dtype: torch.dtype
) -> None:
    source = make(dtype)
    train(source, range(2))
    given = source.state_dict()
    expected = copy.deepcopy(given)
    changed = change(given)
    for tensor in tensors_of(changed):
        tensor.fill_(7)
    changed["param_groups"][0]["params"].append("more")
    assert given["param_groups"] == expected["param_groups"]
    assert given["state"].keys() == expected["state"].keys()
    for a, b in zip(tensors_of(given), tensors_of(expected), strict=True):
        assert_same_bits(a, b)


# Back


@pytest.mark.parametrize("way", ["optimizer", "state dict"])
@pytest.mark.parametrize("options", IMPLEMENTATIONS, ids=str)
def test_export_loads_into_adamw_and_steps(options: dict[str, Any], way: str) -> None:
    """With beta3 = 0, AdamW goes on as AdaMod would have; the bound as in the test above."""
    adam = make_adam(torch.float64, weight_decay=0.0)
    adamod = make_adamod(adam, beta3=0.0, weight_decay=0.1, **OPTIONS)
    adamod.param_groups[1].update(SECOND)
    train(adamod, range(3))
    params = [
        [torch.nn.Parameter(p.detach().clone()) for p in g["params"]] for g in adamod.param_groups
    ]
    adamw = torch.optim.AdamW([{"params": group} for group in params], lr=1.0)
    adamw.load_state_dict(
        export(adamod if way == "optimizer" else adamod.state_dict(), "torch", **options)
    )
    assert options.items() <= adamw.param_groups[0].items()
    train(adamw, range(3, 5))
    train(adamod, range(3, 5))
    for a, b in zip(params_of(adamw), params_of(adamod), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert "exp_avg_lr" not in adamw.state[a]
        assert int(adamw.state[a]["step"]) == 5
    for group in adamw.param_groups:
        assert not {"beta3", "variant", "backend"} & group.keys()


def test_there_and_back_again_is_the_same() -> None:
    adam = make_adam(kind=torch.optim.AdamW, weight_decay=0.2)
    train(adam, range(3))
    given = adam.state_dict()
    back = export(convert(given, "torch", weight_decay=0.2))
    for group, expected in zip(back["param_groups"], given["param_groups"], strict=True):
        assert expected.items() <= group.items()
    for a, b in zip(tensors_of(back), tensors_of(given), strict=True):
        assert_same_bits(a, b)
    again = convert(back, "torch")  # what was exported says that its decay is decoupled
    assert [group["weight_decay"] for group in again["param_groups"]] == [0.2, 0.2]


def test_export_leaves_parameters_without_state_without() -> None:
    adamod = make_adamod(make_adam())
    set_random_grads(params_of(adamod)[:1], 0)
    adamod.step()
    assert list(export(adamod)["state"]) == [0]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{"fused": True}, {"capturable": True, "foreach": True}, {"capturable": True}],
    ids=str,
)
def test_runs_on_a_gpu_go_over_and_back(options: dict[str, Any]) -> None:
    """There torch's steps are tensors on the device, and an lr may be one."""
    params = [torch.nn.Parameter(torch.ones(5, device="cuda")) for _ in range(2)]
    adam = torch.optim.Adam(params, lr=torch.tensor(0.1, device="cuda"), **options)

    def step(optimizer: torch.optim.Optimizer) -> None:
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()

    step(adam)
    assert adam.state[params[0]]["step"].device.type == "cuda"
    adamod = AdaMod(params)
    adamod.load_state_dict(convert(adam.state_dict(), "torch"))
    step(adamod)
    for param in params:
        assert adamod.state[param]["exp_avg_lr"].device.type == "cuda"
        assert_same_bits(adamod.state[param]["step"], torch.tensor(2.0))
    adamw = torch.optim.AdamW(params)
    adamw.load_state_dict(export(adamod, **options))
    step(adamw)
    assert int(adamw.state[params[0]]["step"]) == 3
