"""State dicts that do not fit: a clear error, and nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    STATES,
    Snapshot,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train,
)
from torch import nn

from adamod_fused import AdaMod

StateDict = dict[str, Any]


def of_adam(_: StateDict) -> StateDict:
    params = random_params(*SHAPES)
    adam = torch.optim.Adam([{"params": params[:2]}, {"params": params[2:]}], lr=0.5)
    set_random_grads(params, 0)
    adam.step()
    return adam.state_dict()


def change(path: tuple, value: object) -> Callable[[StateDict], StateDict]:
    """A change of the entry at ``path``; ``KeyError`` stands for its removal."""

    def apply(state_dict: StateDict) -> StateDict:
        *outer, last = path
        at: Any = state_dict
        for key in outer:
            at = at[key]
        if value is KeyError:
            del at[last]
        else:
            at[last] = value
        return state_dict

    return apply


def alias(parameter: int, entry: str) -> Callable[[StateDict], StateDict]:
    """Puts that entry of that parameter in the place of one of the last parameter's."""

    def apply(state_dict: StateDict) -> StateDict:
        tensor = state_dict["state"][parameter][entry]
        state_dict["state"][4]["exp_avg_sq" if parameter == 4 else entry] = tensor
        return state_dict

    return apply


def fewer_groups(state_dict: StateDict) -> StateDict:
    return {**state_dict, "param_groups": state_dict["param_groups"][:1]}


def group(name: str, value: object) -> Callable[[StateDict], StateDict]:
    return change(("param_groups", 1, name), value)


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def freed(numel: int) -> torch.Tensor:
    tensor = torch.ones(numel)
    tensor.untyped_storage().resize_(0)
    return tensor


LAST = ("state", 4)  # the last of all states: everything before it must not have been loaded
NOT_LOADABLE = [
    ("torch.optim.Adam's", of_adam, ValueError, r"group 0 .*lacks beta3, variant.*AdaMod"),
    ("no state", change(("state",), KeyError), ValueError, "lacks 'state'"),
    ("no groups", change(("param_groups",), KeyError), ValueError, "lacks 'param_groups'"),
    ("too few groups", fewer_groups, ValueError, r"\[2\] parameters, the optimizer of \[2, 3\]"),
    ("too few params", group("params", [2, 3]), ValueError, r"\[2, 2\] .*\[2, 3\]"),
    ("too many params", group("params", [2, 3, 4, 5]), ValueError, r"\[2, 4\] .*\[2, 3\]"),
    ("no lr", group("lr", KeyError), ValueError, "group 1 of the state dict lacks lr"),
    ("no variant", group("variant", KeyError), ValueError, "group 1 .* lacks variant"),
    ("lr", group("lr", -1.0), ValueError, r"lr must be .*>= 0, got -1\.0"),
    ("lr nan", group("lr", torch.nan), ValueError, "lr must be .*got nan"),
    ("betas", group("betas", (0.9, 1.0)), ValueError, r"beta2 must lie in \[0, 1\), got 1\.0"),
    ("betas of three", group("betas", (0.9, 0.9, 0.9)), ValueError, "betas must be two numbers"),
    ("beta3", group("beta3", 1.5), ValueError, r"beta3 must lie in \[0, 1\), got 1\.5"),
    ("eps", group("eps", "small"), TypeError, "eps must be a number, got 'small'"),
    ("variant", group("variant", "v3"), ValueError, "variant must be one of .*'released'.*'v3'"),
    ("maximize", group("maximize", 1), TypeError, "maximize must be True or False, got 1"),
    *(
        (f"no {name}", change((*LAST, name), KeyError), ValueError, f"4|2 of group 1 lacks {name}")
        for name in ("step", *STATES)
    ),
    *(
        (
            f"{name} of another shape",
            change((*LAST, name), torch.zeros(5, 3, 2)),
            ValueError,
            rf"{name} of parameter 2 of group 1 has shape \(5, 3, 2\), the parameter \(2, 3, 5\)",
        )
        for name in STATES
    ),
    (
        "a long list",
        change((*LAST, "exp_avg"), [0.0] * 1000),
        TypeError,
        r"exp_avg of .* must be a tensor, got \[0.0, .{190,200}\.\.\.$",
    ),
    (
        "keys of JSON",
        lambda saved: {**saved, "state": {str(key): of for key, of in saved["state"].items()}},
        ValueError,
        r"the state of parameter \d+ under the text '\d+'.*with int\(\)",
    ),
    ("number", change((*LAST, "exp_avg"), 0.0), TypeError, "exp_avg of .* must be a tensor, got 0"),
    (
        "sparse",
        change((*LAST, "exp_avg"), torch.zeros(2, 3, 5).to_sparse()),
        TypeError,
        "exp_avg of parameter 2 of group 1 .*sparse",
    ),
    (
        "complex",
        change((*LAST, "exp_avg"), torch.zeros(2, 3, 5).cfloat()),
        TypeError,
        "exp_avg of parameter 2 of group 1 .*complex64",
    ),
    (
        "no data",
        change((*LAST, "exp_avg"), torch.zeros(2, 3, 5, device="meta")),
        ValueError,
        "exp_avg of parameter 2 of group 1 is on meta and has no values",
    ),
    ("step below 0", change((*LAST, "step"), -1), ValueError, r"step of parameter 2 .* got -1"),
    ("step nan", change((*LAST, "step"), torch.tensor(torch.nan)), ValueError, r"step .*\(nan\)"),
    ("step too large", change((*LAST, "step"), 1e30), ValueError, r"step of .* got 1e\+30"),
    ("half a step", change((*LAST, "step"), 0.5), ValueError, r"step of .* whole number, got 0\.5"),
    ("no dict of states", change(("state",), -1), TypeError, "a dict as 'state' .* got int and"),
    ("no list of groups", change(("param_groups",), 7), TypeError, "got dict and int"),
    (
        "no dict of a group",
        change(("param_groups", 1), 7),
        ValueError,
        "group 1 .* no list 'params'",
    ),
    (
        "no dict of a state",
        change(LAST, torch.ones(2)),
        TypeError,
        "state of parameter 4 must be a",
    ),
    ("no params", group("params", KeyError), ValueError, "group 1 .* has no list 'params'"),
    ("a list as a param", group("params", [2, [], 4]), TypeError, "group 1 .* lists a list"),
    ("a param twice", group("params", [2, 2, 4]), ValueError, "lists parameter 2 twice"),
    ("nested too deeply", group("new", nested(5000)), ValueError, "more than 100 containers"),
    ("lr nested too deeply", group("lr", nested(900)), ValueError, "more than 100 containers"),
    ("lr too large", group("lr", 10**400), ValueError, "lr must be finite and >= 0"),
    ("lr without memory", group("lr", freed(2)), TypeError, r"lr must be a number, got a torch\.f"),
    ("steps", change((*LAST, "step"), torch.ones(2)), TypeError, "step of .* must be a number"),
    ("half a step", change((*LAST, "step"), 1.5), ValueError, "step of .* whole number, got 1.5"),
    *(
        (
            f"negative {name}",
            change((*LAST, name), torch.eye(3, 5).sub(0.5).expand(2, 3, 5).contiguous()),
            ValueError,
            f"{name} of parameter 2 of group 1 holds negative values",
        )
        for name in STATES[1:]
    ),
    (
        "one element for all",
        change((*LAST, "exp_avg"), torch.zeros(1).expand(2, 3, 5)),
        ValueError,
        "exp_avg of parameter 2 of group 1 has elements that share memory.*contiguous",
    ),
    (
        "one tensor for two states",
        alias(4, "exp_avg"),
        ValueError,
        "of parameter 2 of group 1 and exp_avg.* of parameter 2 .* share memory; clone one of them",
    ),
    (
        "one tensor for two parameters",
        alias(2, "step"),
        ValueError,
        "step of parameter [02] .* and step of parameter [02] of group 1 share memory; clone",
    ),
]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [case[1:] for case in NOT_LOADABLE],
    ids=[case[0] for case in NOT_LOADABLE],
)
def test_what_does_not_load_changes_nothing(
    spoil: Callable[[StateDict], StateDict], error: type[Exception], message: str, steps: int
) -> None:
    source, target, twin = make_optimizer(), make_optimizer(seed=1), make_optimizer(seed=1)
    train(source, range(3))
    train(target, range(steps))
    before = Snapshot(target)
    spoiled = spoil(copy.deepcopy(source.state_dict()))
    with pytest.raises(error, match=message):
        target.load_state_dict(spoiled)
    before.assert_unchanged()
    train(target, range(steps, steps + 2))
    train(twin, range(steps + 2))
    assert_same_training(target, twin)


def test_state_for_a_parameter_that_cannot_have_any() -> None:
    (trained,) = random_params((3,))
    integers = nn.Parameter(torch.arange(3), requires_grad=False)
    optimizer = AdaMod([trained, integers], **OPTIONS)
    set_random_grads([trained], 0)
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][1] = copy.deepcopy(state_dict["state"][0])
    before = Snapshot(optimizer)
    with pytest.raises(TypeError, match=r"parameter 1 of group 0 has dtype torch\.int64"):
        optimizer.load_state_dict(state_dict)
    before.assert_unchanged()


def test_errors_name_the_parameter() -> None:
    model = nn.Linear(3, 2)
    optimizer = AdaMod(model.named_parameters(), **OPTIONS)
    set_random_grads(model.parameters(), 0)
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][1]["exp_avg_sq"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 \('bias'\)"):
        optimizer.load_state_dict(state_dict)


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """A view whose memory holds the elements with the other sign."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


@pytest.mark.parametrize("state_format", ["fp32", "16bit"])
@pytest.mark.parametrize("way", [negated, lambda t: torch.stack([t, t], -1)[..., 0]])
def test_views_are_loaded_by_value(way: Any, state_format: str) -> None:
    """Negated ones, and two of one memory whose elements lie between one another's."""
    params = random_params((3, 4))
    optimizer = AdaMod(params, **OPTIONS, state_format=state_format, min_coded_numel=0)
    train(optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    twin = copy.deepcopy(saved)
    for name in STATES:
        saved["state"][0][name] = way(saved["state"][0][name])
    optimizer.load_state_dict(saved)
    for name in STATES:
        assert torch.equal(optimizer.state_dict()["state"][0][name], twin["state"][0][name])
        assert not optimizer.state[params[0]][name].is_neg()
        assert optimizer.state[params[0]][name].is_contiguous()
    train(optimizer, range(1))


def test_step_counts_of_any_kind_are_loaded() -> None:
    optimizer = make_optimizer()
    train(optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    steps = [3, 4.0, torch.tensor(5), torch.tensor([6.0]), torch.tensor(7.0)]
    for i, step in enumerate(steps):
        saved["state"][i]["step"] = step
    optimizer.load_state_dict(saved)
    for param, wanted in zip(params_of(optimizer), range(3, 8), strict=True):
        step = optimizer.state[param]["step"]
        assert (step.dtype, step.shape, float(step)) == (torch.float32, (), wanted)
