"""The operator for all formats: schema, opcheck, the bits of the class, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import OPTIONS, STATES, assert_same_bits, params_of, random_params, set_random_grads
from torch import Tensor

from adamod_fused import AdaMod, fake, operators, reference
from adamod_fused.compiled import as_operand
from adamod_fused.formats import EXPONENTS, REMAINDER, STATE_FORMATS, WEIGHT_FORMATS
from adamod_fused.plan import Plan

SHAPES = ((7, 5), (33,), (), (0,), (3, 40))
FORMATS = [(state, weight) for state in STATE_FORMATS for weight in WEIGHT_FORMATS]
SMALL = 36  # parameters of fewer elements keep float32 states: of SHAPES all but the last
operator = torch.ops.adamod_fused.adamod_coded_.default


def make(formats: tuple[str, str], backend: str | None = None) -> AdaMod:
    """With gradients, and states of one step."""
    params = random_params(*SHAPES, dtype=torch.bfloat16)
    params[0].data = params[0].data.t()
    named = {"state_format": formats[0], "weight_format": formats[1], "min_coded_numel": SMALL}
    groups = [{"params": params[2:]}, {"params": params[:2], "min_coded_numel": 0}]
    optimizer = AdaMod(groups, **OPTIONS, **named, seed=7, backend=backend)
    set_random_grads(params, 0)
    optimizer.step()
    return optimizer


def arguments(optimizer: AdaMod, group: int, first: int) -> dict[str, Any]:
    """What the operator takes for a param group: copies, of the same layout."""
    given = optimizer.param_groups[group]

    def copies(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in tensors]

    states = [optimizer.state[param] for param in given["params"]]
    return {
        "params": copies(given["params"]),
        "grads": copies([param.grad for param in given["params"]]),
        **{f"{name}s": copies([entries[name] for entries in states]) for name in STATES},
        "state_steps": copies([entries["step"] for entries in states]),
        "block_exponents": copies([e[EXPONENTS] for e in states if EXPONENTS in e]),
        "param_remainders": copies([e[REMAINDER] for e in states if REMAINDER in e]),
        **{name: as_operand(value) for name, value in OPTIONS.items()},
        **{n: given[n] for n in ("state_format", "weight_format", "min_coded_numel", "seed")},
        "ordinals": [first + i for i in range(len(states))],
        "backend": given["backend"],
    }


LISTS = ("params", *(f"{n}s" for n in STATES), "state_steps", "block_exponents", "param_remainders")


def written(args: dict[str, Any]) -> list[Tensor]:
    return [tensor for name in LISTS for tensor in args[name]]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_opcheck(formats: tuple[str, str], backend: str) -> None:
    torch.library.opcheck(operator, (), arguments(make(formats, backend), 1, 3))


def test_the_schema_declares_what_formats_write() -> None:
    schema = operators.schema_of(reference.AdaMod, coded=True)
    assert "state_steps, Tensor(a6!)[] block_exponents, Tensor(a7!)[] param_remainders, " in schema
    lying = torch.library.custom_op(
        "adamod_fused_tests::lying_of_exponents_",
        operator,
        mutates_args=[name for name in LISTS if name != "block_exponents"],
        schema=schema.replace("Tensor(a6!)[]", "Tensor[]"),
    )
    args = arguments(make(("8bit", "split")), 1, 3)
    with pytest.raises(Exception, match="block_exponents is not defined as mutable"):
        torch.library.opcheck(lying, (), args, test_utils="test_schema")


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_the_bits_of_the_class(formats: tuple[str, str], backend: str) -> None:
    optimizer = make(formats, backend)
    groups = [arguments(optimizer, 0, 0), arguments(optimizer, 1, 3)]
    versions = [tensor._version for args in groups for tensor in written(args)]
    for seed in (1, 2):
        set_random_grads(params_of(optimizer), seed)
        for args, group in zip(groups, optimizer.param_groups, strict=True):
            args["grads"] = [param.grad for param in group["params"]]
            operator(**args)
        optimizer.step()
    for args, group in zip(groups, optimizer.param_groups, strict=True):
        states = [optimizer.state[param] for param in group["params"]]
        for name, one in zip(LISTS, ("", *STATES, "step", EXPONENTS, REMAINDER), strict=True):
            expected = [e[one] for e in states if one in e] if one else group["params"]
            for i, (a, b) in enumerate(zip(args[name], expected, strict=True)):
                assert_same_bits(a, b, f"{name} {i}")
    now = [tensor._version for args in groups for tensor in written(args)]
    assert all(new > old for new, old in zip(now, versions, strict=True))


def test_ordinals_and_seed_choose_the_random_bits() -> None:
    optimizer = make(("8bit", "stochastic"))
    results = []
    for change in ({}, {"ordinals": [3, 4]}, {"ordinals": []}, {"ordinals": [4, 3]}, {"seed": 8}):
        args = arguments(optimizer, 1, 3) | change
        operator(**args)
        results.append(torch.cat([tensor.flatten() for tensor in args["exp_avg_sqs"]]))
    assert torch.equal(results[0], results[1])
    assert not any(torch.equal(results[0], other) for other in results[2:])
    args = arguments(optimizer, 0, 0)
    counted = arguments(optimizer, 0, 0) | {"ordinals": []}
    operator(**args)
    operator(**counted)
    for a, b in zip(written(args), written(counted), strict=True):
        assert_same_bits(a, b)


def test_nothing_on_a_device_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a graph would wait for it. Reading a meta tensor raises; else it is skipped."""
    monkeypatch.setattr(fake, "has_values", lambda _: True)
    param, grad = torch.zeros(64, device="meta"), torch.zeros(64, device="meta")
    group = {**make(("8bit", "plain"), "reference").param_groups[1], "params": [param]}
    entries = {name: torch.zeros(64, dtype=torch.uint8, device="meta") for name in STATES}
    entries |= {"step": torch.zeros(()), EXPONENTS: param.new_ones((2, 3), dtype=torch.uint8)}
    Plan(AdaMod.rule, [group], {param: entries}, {param: grad}.__getitem__, may_wait=False)
    with pytest.raises(NotImplementedError, match="meta"):
        Plan(AdaMod.rule, [group], {param: entries}, {param: grad}.__getitem__)


def without_last(tensors: list[Tensor]) -> list[Tensor]:
    return tensors[:-1]


def in_rows(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


REFUSED: list[tuple[str, str, Any, str]] = [
    ("no exponents", "block_exponents", without_last, "parameter 1 of group 0 is the first wit"),
    ("no remainder", "param_remainders", without_last, "parameter 1 of group 0 is the first wit"),
    ("too many", "block_exponents", lambda t: [*t, t[0]], "has 3 tensors, and 2 parameters have"),
    ("blocks", "block_exponents", lambda t: [t[0], t[1][:1]], "block_exponents of parameter 1 of"),
    ("swapped", "block_exponents", lambda t: [t[0], t[1].int()], "block_exponents of parameter 1"),
    ("zero", "block_exponents", lambda t: [t[0], t[1] * 0], "parameter 1 of group 0 is 0 for exp"),
    ("remainder", "param_remainders", lambda t: [t[0], t[1][:1]], "param_remainder of parameter 1"),
    ("floats", "exp_avgs", lambda t: [t[0], t[1].float()], "exp_avg of parameter 1 of group 0 has"),
    ("layout", "exp_avg_sqs", in_rows, "exp_avg_sq of parameter 0 of group 0 has strides"),
    ("ordinals", "ordinals", without_last, "ordinals has 1 numbers, params 2 tensors"),
    ("format", "state_format", lambda _: "9bit", "state_format must be one of"),
    ("format of plain tensors", "state_format", lambda _: "fp32", "block_exponents has 2 tensors"),
    ("lr", "lr", lambda _: torch.tensor(-1.0), "lr must be finite and >= 0"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), [pytest.param(*r[1:], id=r[0]) for r in REFUSED]
)
def test_what_is_refused_changes_nothing(name: str, change: Any, message: str) -> None:
    args = arguments(make(("8bit", "split")), 1, 3)
    before = [tensor.clone() for tensor in written(args)]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        operator(**(args | {name: change(args[name])}))
    for tensor, old in zip(written(args), before, strict=True):
        assert_same_bits(tensor, old)
