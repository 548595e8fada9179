"""Runs of other packages' AdaMod that go on here: as written down, and by the packages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import foreign_state_dicts as foreign
import pytest
import torch
from helpers import OPTIONS, assert_same_training, make_optimizer, params_of, train

from adamod_fused import AdaMod
from adamod_fused.checkpoint import convert

LITERALS = {
    "authors": (foreign.authors, "authors"),
    "authors, first release": (lambda: foreign.authors(beta3="gamma"), "authors"),
    "torch_optimizer": (foreign.authors, "torch_optimizer"),
    "pytorch_optimizer 4.1": (foreign.pytorch_optimizer, "pytorch_optimizer"),
    "pytorch_optimizer 3.3": (lambda: foreign.pytorch_optimizer("3.3"), "pytorch_optimizer"),
}


def parameters(values: tuple[list, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in values]


def step(optimizer: torch.optim.Optimizer, grads: tuple[list | None, ...]) -> None:
    for param, grad in zip(params_of(optimizer), grads, strict=True):
        param.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
    optimizer.step()


def groups_of(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    second = {"lr": foreign.SECOND_LR, "weight_decay": 0.0}
    return [{"params": params[:1]}, {"params": params[1:], **second}]


def assert_close(optimizer: torch.optim.Optimizer, expected: tuple[list, ...]) -> None:
    """A dozen float64 roundings apart: torch's root and its order of operations are not ours."""
    for param, values in zip(params_of(optimizer), expected, strict=True):
        torch.testing.assert_close(param, parameters((values,))[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("case", LITERALS)
def test_the_third_step_is_the_one_that_the_package_made(case: str, backend: str) -> None:
    make, source = LITERALS[case]
    adamod = AdaMod(groups_of(parameters(foreign.AFTER_TWO)), backend=backend)
    adamod.load_state_dict(convert(make(), source))
    step(adamod, foreign.GRADS[2])
    assert_close(adamod, foreign.AFTER_THREE)
    assert [int(adamod.state[p]["step"]) for p in params_of(adamod)] == [3, 3, 1]


@pytest.mark.parametrize("case", LITERALS)
def test_what_was_saved_goes_over_whole(case: str) -> None:
    make, source = LITERALS[case]
    given = make()
    expected = copy.deepcopy(given)
    converted = convert(given, source, optimizer=None)
    for key, entries in expected["state"].items():
        for name in ("exp_avg", "exp_avg_sq", "exp_avg_lr"):
            assert torch.equal(converted["state"][key][name], entries[name])
            assert torch.equal(given["state"][key][name], entries[name])
            assert converted["state"][key][name] is not given["state"][key][name]
        assert converted["state"][key]["step"] == 2
    assert given["param_groups"] == expected["param_groups"]
    shared = {
        **AdaMod([torch.empty(0)]).defaults,
        "betas": foreign.BETAS,
        "beta3": foreign.BETA3,
        "eps": foreign.EPS,
        "variant": "released",
    }
    assert converted["param_groups"] == [
        {**shared, "lr": foreign.LR, "weight_decay": foreign.WEIGHT_DECAY, "params": [0]},
        {**shared, "lr": foreign.SECOND_LR, "weight_decay": 0.0, "params": [1, 2]},
    ]


def test_the_optimizer_says_only_what_the_source_does_not() -> None:
    adamod = AdaMod(groups_of(parameters(foreign.START)), beta3=0.1, maximize=True, lr=9.0)
    for group in convert(foreign.authors(), "authors", optimizer=adamod)["param_groups"]:
        assert (group["beta3"], group["variant"], group["maximize"]) == (0.5, "released", True)


def test_a_zero_bound_warms_up_anew() -> None:
    converted = convert(foreign.authors(), "authors", bound_init="zero")
    assert not any(entries["exp_avg_lr"].any() for entries in converted["state"].values())


@pytest.mark.parametrize("beta3", ["beta3", "gamma"])
@pytest.mark.parametrize("source", ["authors", "pytorch_optimizer"])
def test_a_run_written_in_a_foreign_format_goes_on_bit_for_bit(
    source: str, beta3: str, backend: str
) -> None:
    """fp32: the format loses nothing, so the run that went through it is the uninterrupted one."""
    whole, first = make_optimizer(backend=backend), make_optimizer(backend=backend)
    for optimizer in (whole, first):
        for group in optimizer.param_groups:
            group["maximize"] = False  # which neither format holds
        train(optimizer, range(3))
    saved = copy.deepcopy(first.state_dict())
    for group in saved["param_groups"]:
        for name in ("variant", "maximize", "backend"):
            del group[name]
        if source == "authors":
            group[beta3] = group.pop("beta3")
        else:
            group["betas"] = (*group["betas"], group.pop("beta3"))
            group.update(step=3, weight_decouple=True, fixed_decay=False)
    for entries in saved["state"].values():
        count = int(entries.pop("step"))
        if source == "authors":
            entries["step"] = count
    resumed = make_optimizer(seed=9, backend=backend)
    with torch.no_grad():
        for param, value in zip(params_of(resumed), params_of(first), strict=True):
            param.copy_(value)
    resumed.load_state_dict(convert(saved, source))
    train(resumed, range(3, 6))
    train(whole, range(3, 6))
    assert_same_training(resumed, whole)


# The packages themselves, where they are installed (pytorch_optimizer is in the extra `test`).


def authors_adamod(params: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    module = pytest.importorskip("adamod", reason="adamod, the authors' package, is not installed")
    return module.AdaMod(params, **options)


def torch_optimizer_adamod(params: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    module = pytest.importorskip("torch_optimizer", reason="torch_optimizer is not installed")
    return module.AdaMod(params, **options)


def pytorch_optimizer_adamod(
    params: list[dict[str, Any]], beta3: float, betas: tuple[float, float], **options: Any
) -> torch.optim.Optimizer:
    module = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    return module.AdaMod(params, betas=(*betas, beta3), **options)


PACKAGES = {
    "authors": authors_adamod,
    "torch_optimizer": torch_optimizer_adamod,
    "pytorch_optimizer": pytorch_optimizer_adamod,
}


@pytest.mark.filterwarnings("ignore:This overload of:UserWarning")  # the authors' call of add_
@pytest.mark.parametrize("source", PACKAGES)
def test_the_literals_are_what_the_package_saves(source: str) -> None:
    theirs = PACKAGES[source](
        groups_of(parameters(foreign.START)),
        lr=foreign.LR,
        betas=foreign.BETAS,
        beta3=foreign.BETA3,
        eps=foreign.EPS,
        weight_decay=foreign.WEIGHT_DECAY,
    )
    step(theirs, foreign.GRADS[0])
    step(theirs, foreign.GRADS[1])
    assert_close(theirs, foreign.AFTER_TWO)
    saved = theirs.state_dict()
    literal = foreign.pytorch_optimizer() if source == "pytorch_optimizer" else foreign.authors()
    for group, expected in zip(saved["param_groups"], literal["param_groups"], strict=True):
        # What a version adds is known to be unused; `foreach` came with pytorch_optimizer 4.
        assert {k: v for k, v in group.items() if k != "foreach"}.items() <= expected.items()
    assert saved["state"].keys() == literal["state"].keys()
    torch.testing.assert_close(saved["state"], literal["state"], rtol=1e-14, atol=1e-14)
    step(theirs, foreign.GRADS[2])
    by_group = source == "pytorch_optimizer"
    assert_close(theirs, foreign.AFTER_THREE_BY_GROUP if by_group else foreign.AFTER_THREE)


@pytest.mark.filterwarnings("ignore:This overload of:UserWarning")
@pytest.mark.parametrize("source", PACKAGES)
def test_the_packages_own_run_goes_on_here(source: str) -> None:
    """Ten steps there, five more on both sides; a few float64 roundings each, growing slowly."""
    make: Callable[..., torch.optim.Optimizer] = PACKAGES[source]
    names = ("lr", "betas", "beta3", "eps", "weight_decay")
    ours = make_optimizer(torch.float64)
    params = [torch.nn.Parameter(p.detach().clone()) for p in params_of(ours)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.2}]
    theirs = make(groups, **{name: OPTIONS[name] for name in names})
    train(theirs, range(10))
    with torch.no_grad():
        for a, b in zip(params_of(ours), params, strict=True):
            a.copy_(b)
    ours.load_state_dict(convert(theirs.state_dict(), source, optimizer=ours, maximize=False))
    for i in range(10, 15):
        train(ours, range(i, i + 1))
        train(theirs, range(i, i + 1))
        for a, b in zip(params_of(ours), params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
