"""What cannot be converted: errors that name what is wrong and what to do, and change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import foreign_state_dicts as foreign
import pytest
import torch

from adamod_fused import AdaMod
from adamod_fused.checkpoint import convert, convert_format, export

StateDict = dict[str, Any]


def adamod(steps: int = 1) -> AdaMod:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = AdaMod([param])
    for _ in range(steps):
        param.grad = torch.ones(3)
        optimizer.step()
    return optimizer


def without(state_dict: StateDict, *path: Any) -> StateDict:
    """The dict with the entry at the end of the path taken out."""
    holder = state_dict
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return state_dict


def with_entry(state_dict: StateDict, value: Any, *path: Any) -> StateDict:
    holder = state_dict
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return state_dict


def adam_states(**changes: Any) -> StateDict:
    state_dict = foreign.adam()
    state_dict["state"][0].update(changes)
    return state_dict


def radam() -> StateDict:
    return torch.optim.RAdam([torch.ones(3)]).state_dict()


def pytorch_optimizers(**changes: Any) -> StateDict:
    state_dict = foreign.pytorch_optimizer()
    state_dict["param_groups"][0].update(changes)
    return state_dict


FOREIGN: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a model": (
        lambda: torch.nn.Linear(2, 2).state_dict(),
        "torch",
        r"lacks 'state' \(it has weight, bias\); give what an optimizer's state_dict\(\) returned",
    ),
    "a whole checkpoint": (
        lambda: {"model": {}, "optimizer": foreign.adam()},
        "torch",
        r"lacks 'state' \(it has model, optimizer\).*checkpoint\['optimizer'\]",
    ),
    "nothing": (dict, "torch", r"lacks 'state' \(it has nothing\)"),
    "half": (lambda: {"state": {}}, "torch", "lacks 'param_groups' .it has state"),
    "a group without params": (
        lambda: without(foreign.adam(), "param_groups", 0, "params"),
        "torch",
        "param group 0 of the state dict has no list 'params'",
    ),
    "a group lost": (
        lambda: without(foreign.authors(), "param_groups", 1),
        "authors",
        "has state for 1, which no param group lists: groups are missing",
    ),
    "a parameter twice": (lambda: foreign.adam(params=[0, 0]), "torch", "lists parameter 0 twice"),
    "RAdam": (radam, "torch", "param group 0 lacks amsgrad .*no state dict of torch's Adam"),
    "Adam as the authors'": (foreign.adam, "authors", "param group 0 lacks beta3 .*; name the"),
    "the authors' as Adam": (foreign.authors, "torch", "lacks amsgrad .*; name the optimizer"),
    "gamma in torch_optimizer": (
        lambda: foreign.authors("gamma"),
        "torch_optimizer",
        "param group 0 lacks beta3",
    ),
    "pytorch_optimizer's as the authors'": (
        foreign.pytorch_optimizer,
        "authors",
        "param group 0 lacks beta3",
    ),
    "the authors' as pytorch_optimizer's": (
        foreign.authors,
        "pytorch_optimizer",
        "param group 0 lacks weight_decouple",
    ),
    "our own": (lambda: adamod().state_dict(), "authors", "AdaMod already: load .* as it is"),
    "two betas": (
        lambda: pytorch_optimizers(betas=(0.9, 0.99)),
        "pytorch_optimizer",
        r"param group 0 has betas=\(0.9, 0.99\), where pytorch_optimizer's AdaMod has three",
    ),
    "no second moment": (
        lambda: without(foreign.adam(), "state", 0, "exp_avg_sq"),
        "torch",
        r"state of parameter 0 of group 0 lacks exp_avg_sq \(it has step, exp_avg\)",
    ),
    "no bound": (
        lambda: without(foreign.authors(), "state", 1, "exp_avg_lr"),
        "authors",
        "state of parameter 0 of group 1 lacks exp_avg_lr",
    ),
    "no step": (lambda: without(foreign.adam(), "state", 0, "step"), "torch", "lacks step"),
    "no step in the group": (
        lambda: without(foreign.pytorch_optimizer(), "param_groups", 1, "step"),
        "pytorch_optimizer",
        r"parameter 0 of group 1 lacks step \(in its param group\)",
    ),
    "master weights": (
        lambda: adam_states(master_param=torch.ones(3)),
        "torch",
        "has master_param, which torch's Adam or AdamW does not keep",
    ),
    "named": (
        lambda: without(foreign.adam(param_names=["bias"]), "state", 0, "step"),
        "torch",
        r"parameter 0 of group 0 \('bias'\) lacks step",
    ),
    "shapes that differ": (
        lambda: adam_states(exp_avg_sq=torch.ones(4)),
        "torch",
        r"exp_avg_sq of .* has shape \(4,\), exp_avg \(3,\)",
    ),
    "a step of 2.5": (lambda: adam_states(step=2.5), "torch", "must be a whole number, got 2.5"),
    "a step of -1": (lambda: adam_states(step=-1), "torch", r"step of .* must lie in \[0, 1\.67"),
    "a step of NaN": (lambda: adam_states(step=float("nan")), "torch", "step of .* must lie in"),
    "a negative second moment": (
        lambda: adam_states(exp_avg_sq=torch.tensor([1.0, -1.0, 1.0])),
        "torch",
        "exp_avg_sq of parameter 0 of group 0 holds negative values",
    ),
    "amsgrad": (
        lambda: foreign.adam(amsgrad=True),
        "torch",
        "param group 0 has amsgrad=True, .* set its 'amsgrad' to False",
    ),
    "adam_debias": (
        lambda: pytorch_optimizers(adam_debias=True),
        "pytorch_optimizer",
        "param group 0 has adam_debias=True, .* set its 'adam_debias' to False",
    ),
    "an lr of NaN": (
        lambda: foreign.adam(lr=float("nan")),
        "torch",
        "param group 0: lr must be finite and >= 0, got nan",
    ),
    "Adam's decay": (
        lambda: foreign.adam(weight_decay=0.1, decoupled_weight_decay=False),
        "torch",
        r"weight_decay=0.1 of param group 0 is Adam's L2 term .*for each.*: weight_decay=\[0.1\]",
    ),
    "decay of an older torch": (
        lambda: foreign.adam(weight_decay=0.1),
        "torch",
        r"do not tell AdamW's decoupled decay from Adam's.*weight_decay=\[0.1\]",
    ),
    "coupled decay": (
        lambda: pytorch_optimizers(weight_decouple=False),
        "pytorch_optimizer",
        r"weight_decay=0.0625 of param group 0 is an L2 term .*weight_decay=\[0.0625, 0.0\]",
    ),
    "fixed decay": (
        lambda: pytorch_optimizers(fixed_decay=True),
        "pytorch_optimizer",
        "is not multiplied by lr .*weight_decay / lr does the same",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_of_the_source_or_not_whole(case: str) -> None:
    make, source, message = FOREIGN[case]
    given = make()
    before = copy.deepcopy(given)
    with pytest.raises(ValueError, match=message):
        convert(given, source)
    assert str(given) == str(before)


WRONG_TYPES: dict[str, tuple[Any, str]] = {
    "no dict": (torch.ones(2), "a state dict is a dict, got Tensor"),
    "an optimizer": (adamod(), "a state dict is a dict, got AdaMod"),
    "a list of states": ({"state": [], "param_groups": []}, "a dict as 'state'.*got list and list"),
    "a number": (adam_states(exp_avg=0.5), "exp_avg of .* must be a strided tensor .*got 0.5"),
    "complex": (adam_states(exp_avg=torch.ones(3) * 1j), "exp_avg of .* got torch.complex64"),
    "sparse": (adam_states(exp_avg=torch.ones(3).to_sparse()), "got torch.float32, torch.sparse"),
    "integers": (adam_states(exp_avg_sq=torch.ones(3).long()), "exp_avg_sq of .*got torch.int64"),
    "a step in words": (adam_states(step="three"), "step of .* must be a number, got 'three'"),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_entries_of_a_wrong_type(case: str) -> None:
    given, message = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=message):
        convert(given, "torch")


ARGUMENTS: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"source": "Adam"}, ValueError, "source must be one of 'torch', 'authors', .*got 'Adam'"),
    ({"bound_init": "one"}, ValueError, "bound_init must be one of 'current', 'zero', got 'one'"),
    ({"beta3": 1.0}, ValueError, r"beta3 must lie in \[0, 1\), got 1.0"),
    ({"variant": "old"}, ValueError, "variant must be one of 'paper', 'released', got 'old'"),
    ({"weight_decay": -1}, ValueError, "weight_decay must be finite and >= 0, got -1"),
    ({"weight_decay": "no"}, TypeError, "weight_decay must be a number, got 'no'"),
    ({"weight_decay": [0.1, 0.2]}, ValueError, "weight_decay has 2 numbers, .* 1 param groups"),
    ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
    ({"optimizer": torch.optim.Adam([torch.ones(3)])}, TypeError, "must be the AdaMod .*got Adam"),
    (
        {"optimizer": AdaMod([torch.ones(3), torch.ones(3)])},
        ValueError,
        r"has param groups of \[1\] parameters, the optimizer of \[2\]",
    ),
)


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_arguments_out_of_range(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert(foreign.adam(), **{"source": "torch", **arguments})


@pytest.mark.parametrize("weight_decay", [0.0, [0.0], 0.3, torch.tensor(0.3)], ids=repr)
def test_a_decay_that_is_given_replaces_one_of_another_form(weight_decay: Any) -> None:
    given = foreign.adam(weight_decay=0.1, decoupled_weight_decay=False)
    (group,) = convert(given, "torch", weight_decay=weight_decay)["param_groups"]
    expected = weight_decay[0] if isinstance(weight_decay, list) else float(weight_decay)
    assert group["weight_decay"] == expected


def test_no_decay_needs_no_word() -> None:
    for flags in ({}, {"decoupled_weight_decay": False}):
        assert convert(foreign.adam(**flags), "torch")["param_groups"][0]["weight_decay"] == 0


def test_adamws_decay_is_kept() -> None:
    given = foreign.adam(weight_decay=0.1, decoupled_weight_decay=True)
    assert convert(given, "torch")["param_groups"][0]["weight_decay"] == 0.1


def test_amsgrad_goes_without_its_maximum_when_told_to() -> None:
    given = adam_states(max_exp_avg_sq=torch.full((3,), 9.0))
    assert set(convert(given, "torch")["state"][0]) == {
        "step",
        "exp_avg",
        "exp_avg_sq",
        "exp_avg_lr",
    }


EXPORTS: tuple[tuple[Any, dict[str, Any], type[Exception], str], ...] = (
    (adamod(), {"target": "authors"}, ValueError, "target must be one of 'torch', got 'authors'"),
    (foreign.adam(), {}, ValueError, r"lacks beta3, variant.*give what AdaMod.state_dict\(\)"),
    ({}, {}, ValueError, "lacks 'state'"),
    (
        without(adamod().state_dict(), "state", 0, "exp_avg"),
        {},
        ValueError,
        "state of parameter 0 of group 0 lacks exp_avg",
    ),
    (with_entry(adamod().state_dict(), 1, "state", 0, "exp_avg"), {}, TypeError, "exp_avg of .*1"),
)


@pytest.mark.parametrize(
    ("given", "arguments", "error", "message"), EXPORTS, ids=range(len(EXPORTS))
)
def test_what_cannot_be_exported(
    given: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(given, **arguments)


FORMAT_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "codes": (
        {"block_exponents": torch.ones(1, 3, dtype=torch.uint8)},
        TypeError,
        "the states of parameter 0 of group 0 .* no codes",
    ),
    "code numbers": ({"exp_avg": torch.ones(3).byte()}, TypeError, "numbers, exp_avg, exp_avg_sq"),
    "negative": ({"exp_avg_lr": -torch.ones(3)}, ValueError, "exp_avg_lr of .* negative values"),
    "half a step": ({"step": torch.tensor(2.5)}, ValueError, "step of .* must be a whole number"),
}


@pytest.mark.parametrize("case", FORMAT_ERRORS)
def test_what_has_no_values_in_another_format(case: str) -> None:
    changes, error, message = FORMAT_ERRORS[case]
    given = copy.deepcopy(adamod().state_dict())
    given["state"][0].update(changes)
    with pytest.raises(error, match=message):
        convert_format(given, state_format="8bit")
    del given["state"][0]["step"]
    with pytest.raises((ValueError, TypeError)):
        convert_format(given)


def test_negated_views_are_read_by_value() -> None:
    given, twin = foreign.adam(), foreign.adam()
    tensor = given["state"][0]["exp_avg"]
    given["state"][0]["exp_avg"] = torch.complex(tensor * 0, -tensor).conj().imag
    converted = [
        convert(state_dict, "torch")["state"][0]["exp_avg"] for state_dict in (given, twin)
    ]
    assert converted[0].view(torch.int32).equal(converted[1].view(torch.int32))
