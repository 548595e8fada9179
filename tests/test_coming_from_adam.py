"""What docs/coming_from_adam.md claims: each number is computed, each link leads somewhere."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from helpers import STATES, assert_same_bits, make_optimizer, train
from test_weight_decay import Training
from torch.nn import Parameter

from adamod_fused import AdaMod

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coming_from_adam.md"
TEXT = " ".join(PAGE.read_text().split())
LR = 1e-3


def rate(optimizer: AdaMod, grad: float = 1.0, steps: int = 1) -> float:
    """The bounded rate after so many more steps with one and the same gradient."""
    (param,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        param.grad = torch.full_like(param, grad)
        before = param.detach().clone()
        optimizer.step()
    # Without momentum, a step is the rate times the gradient.
    return ((before - param.detach()) / grad).item()


def make(beta3: float, **options: float) -> AdaMod:
    param = Parameter(torch.zeros(1, dtype=torch.float64))
    return AdaMod([param], lr=LR, betas=(0.0, 0.999), beta3=beta3, **options)


def test_the_code_runs_and_all_examples_are_linked() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code, {})
    links = re.findall(r"\]\((?!http)(.*?)\)", PAGE.read_text())
    linked = {Path(link).stem for link in links if "examples/" in link}
    assert linked == {path.stem for path in (ROOT / "examples").glob("*.py")}


def test_the_warm_up_is_the_one_of_the_table() -> None:
    header, *rows = re.findall(r"^\| (steps|beta3 = \S+) \| (.*) \|$", PAGE.read_text(), re.M)
    marks = [int(mark.replace(",", "")) for mark in header[1].split(" | ")]
    assert len(rows) == 3
    for name, shares in rows:
        optimizer, done = make(float(name.removeprefix("beta3 = "))), 0
        for mark, share in zip(marks, shares.split(" | "), strict=True):
            found, done = rate(optimizer, steps=mark - done), mark
            assert f"{100 * found / LR:.0f} %" == share, (name, mark)


@pytest.mark.parametrize(("beta3", "warm_up"), [(0.999, 2_000), (0.99, 200)])
def test_the_bound_and_a_linear_warm_up_hold_back_as_much(beta3: float, warm_up: int) -> None:
    assert beta3 == pytest.approx(1 - 2 / warm_up)
    optimizer = make(beta3)
    held_back = sum(1 - rate(optimizer) / LR for _ in range(10 * warm_up))
    linear = sum(1 - min(1, (step + 1) / warm_up) for step in range(10 * warm_up))
    assert held_back == pytest.approx(1 / (1 - beta3), rel=0.02)
    assert held_back == pytest.approx(linear, rel=0.02)


@pytest.mark.parametrize("name", ["demo", "demo-lr-1e-3"])
def test_the_losses_are_those_of_the_records(name: str) -> None:
    record = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    assert (record["settings"]["steps"], record["settings"]["beta3"]) == (600, 0.999)
    loss = {run["optimizer"]: f"{run['validation_loss']:.2f}" for run in record["runs"]}
    said = {
        "demo": f"AdaMod ended at {loss['AdaMod']} and Adam at {loss['Adam']}",
        "demo-lr-1e-3": f"a validation loss of {loss['Adam']} and AdaMod at {loss['AdaMod']}",
    }
    assert said[name] in TEXT


def test_a_fall_of_lr_holds_at_once_and_a_rise_comes_late() -> None:
    beta3, settled = 0.99, 3000
    falls, rises = make(beta3), make(beta3)
    for optimizer in (falls, rises):
        assert rate(optimizer, steps=settled) == pytest.approx(LR)
    falls.param_groups[0]["lr"] = LR / 10
    rises.param_groups[0]["lr"] = LR * 10
    assert rate(falls) == pytest.approx(LR / 10)
    (state,) = falls.state.values()
    assert state["exp_avg_lr"].item() > 0.9 * LR  # loose
    arrived = (rate(rises, steps=round(1 / (1 - beta3))) - LR) / (9 * LR)
    assert f"{100 * arrived:.0f} % of the rise has arrived" in TEXT


def test_weight_decay_is_adamws_whatever_the_bound() -> None:
    weights = [Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [
        AdaMod([weights[0]], lr=LR, weight_decay=0.1),
        torch.optim.AdamW([weights[1]], lr=LR, weight_decay=0.1),
    ]
    for weight, optimizer in zip(weights, optimizers, strict=True):
        for _ in range(5):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
    torch.testing.assert_close(*weights)
    defaults = [
        inspect.signature(made).parameters["weight_decay"].default
        for made in (AdaMod, torch.optim.AdamW)
    ]
    assert defaults == [0.0, 0.01]


def test_the_decay_that_was_applied_is_that_of_the_table() -> None:
    header, *rows = re.findall(
        r"^\| (lr \* weight_decay|AdamW|AdaMod) \| (.*) \|$", PAGE.read_text(), re.M
    )
    rates = [float(rate) for rate in header[1].split(" | ")]
    made = {"AdamW": torch.optim.AdamW, "AdaMod": functools.partial(AdaMod, beta3=0.0)}
    assert [name for name, _ in rows] == list(made)
    for name, shares in rows:
        for rate, share in zip(rates, shares.split(" | "), strict=True):
            training = Training(made[name], 1 << 16, weight_decay=rate / LR)
            decayed, expected, _ = training.decay(rate)
            assert f"{abs(decayed / expected):.2f}" == share, (name, rate)


def test_an_element_without_gradients_is_stepped_as_by_adam_for_long() -> None:
    optimizer = make(0.999, eps=1e-8)
    rate(optimizer, grad=1e-300, steps=100)  # squared it is 0
    (state,) = optimizer.state.values()
    before = copy.deepcopy(state)
    assert before["exp_avg_lr"].item() == pytest.approx((1 - 0.999**100) * LR / 1e-8)
    # Gradients come: Adam's rate, that of beta3 = 0, ten thousand steps later still.
    unbound = make(0.0)
    rate(unbound, grad=1e-300, steps=100)
    assert rate(optimizer, steps=1) == rate(unbound, steps=1) > LR
    rate(optimizer, steps=10_000)
    assert state["exp_avg_lr"].item() > 2 * LR


def test_no_gradient_changes_nothing() -> None:
    optimizer = make_optimizer()
    train(optimizer, range(1))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    optimizer.step()
    for index, states in optimizer.state_dict()["state"].items():
        for name, tensor in states.items():
            assert_same_bits(tensor, before[index][name], name)


def test_the_bytes() -> None:
    param = Parameter(torch.ones(1000))
    found = []
    for make_one in (torch.optim.Adam, AdaMod):
        optimizer = make_one([param])
        param.grad = torch.ones_like(param)
        optimizer.step()
        states = optimizer.state[param]
        found.append(sum(states[n].nbytes for n in STATES if n in states) // param.numel())
    moved = [state + 3 * 4 + state for state in found]  # states and param both ways, grad once
    assert f"| states | {found[0]} bytes | {found[1]} bytes |" in TEXT
    assert f"in a step | {moved[0]} bytes | {moved[1]} bytes |" in TEXT


def test_a_state_dict_of_adam_is_refused() -> None:
    param = Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    adam = torch.optim.Adam([param])
    adam.step()
    with pytest.raises(ValueError, match="param group 0 of the state dict lacks beta3"):
        AdaMod([param]).load_state_dict(adam.state_dict())
