"""Formats that cannot be, codes that are not whole, gradients that are not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import OPTIONS, STATES, Snapshot, assert_same_bits, random_params, set_random_grads

from adamod_fused import AdaMod
from adamod_fused.formats import EXPONENTS, REMAINDER

REFUSED = (
    ({"state_format": "4bit"}, ValueError, "state_format must be one of .*'8bit', got '4bit'"),
    ({"weight_format": "int8"}, ValueError, "weight_format must be one of .*, got 'int8'"),
    ({"weight_format": "split"}, ValueError, "parameter 0 of group 0 is torch.float32; give it"),
    ({"weight_format": "stochastic"}, ValueError, "is torch.float32; .*convert it to torch.bfl"),
    ({"min_coded_numel": -1}, ValueError, "min_coded_numel must be finite and >= 0, got -1"),
    ({"min_coded_numel": 1.5}, TypeError, "min_coded_numel must be a whole number, got 1.5"),
    ({"seed": "a"}, TypeError, "seed must be a number, got 'a'"),
)


@pytest.mark.parametrize(("keywords", "error", "message"), REFUSED, ids=str)
def test_refused(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdaMod(random_params((3, 4)), **OPTIONS, **keywords)
    optimizer = AdaMod(random_params((3, 4)), **OPTIONS)
    optimizer.param_groups[0].update(keywords)
    set_random_grads(optimizer.param_groups[0]["params"], 0)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    before.assert_unchanged()


def test_float64_parameters() -> None:
    with pytest.raises(ValueError, match=r"'8bit' has less than .* float64, are kept for; give it"):
        AdaMod(random_params((3,), dtype=torch.float64), state_format="8bit")


def stepped(backend: str, numel: int = 100, weight_format: str = "split") -> AdaMod:
    params = random_params((numel,), dtype=torch.bfloat16)
    keywords = {"weight_format": weight_format, "min_coded_numel": 0}
    optimizer = AdaMod(params, **OPTIONS, backend=backend, state_format="8bit", **keywords)
    set_random_grads(params, 0)
    optimizer.step()
    return optimizer


def broken(name: str) -> dict[str, Any]:
    exponents = torch.ones(4, 3, dtype=torch.uint8)
    corrupted = exponents.clone()
    corrupted[3, 2] = 0
    return {
        "codes of another shape": {"exp_avg": torch.zeros(99, dtype=torch.uint8)},
        "codes of two formats": {"exp_avg": torch.zeros(100, dtype=torch.int16)},
        "codes of another kind": {"exp_avg": torch.zeros(100, dtype=torch.int8)},
        "too few exponents": {EXPONENTS: exponents[:3]},
        "exponents of another dtype": {EXPONENTS: exponents.short()},
        "exponents in columns": {EXPONENTS: exponents.t().contiguous().t()},
        "a corrupted scale": {EXPONENTS: corrupted},
        "a short remainder": {REMAINDER: torch.zeros(99, dtype=torch.int16)},
        "a wide remainder": {REMAINDER: torch.zeros(100, dtype=torch.int32)},
    }[name]


MESSAGES = {
    "codes of another shape": "exp_avg of parameter 0 of group 0 has shape .99,.*, the parameter",
    "codes of two formats": "exp_avg_sq of .* has dtype torch.uint8",
    "codes of another kind": "has dtype torch.int8 beside block_exponents",
    "too few exponents": r"must be .* shape \(4, 3\), .* got torch.uint8, cpu, \(3, 3\)",
    "exponents of another dtype": "got torch.int16, cpu",
    "exponents in columns": r"must be contiguous.*strides \(1, 4\)",
    "a corrupted scale": r"of parameter 0 .* is 0 for exp_avg_lr in block 3 \(elements 96 to 99",
    "a short remainder": r"must be torch.int16, of the parameter's shape \(100,\).*\(99,\)",
    "a wide remainder": "got torch.int32",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_codes_that_are_not_whole(name: str, backend: str) -> None:
    optimizer = stepped(backend)
    (param,) = optimizer.state
    optimizer.state[param].update(broken(name))
    optimizer.param_groups[0]["min_coded_numel"] = 1  # a new plan, which looks at all of it
    before = Snapshot(optimizer)
    with pytest.raises((TypeError, ValueError), match=MESSAGES[name]):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize("name", [EXPONENTS, REMAINDER])
def test_freed_memory_beside_the_states_is_not_read(name: str, size: int, backend: str) -> None:
    optimizer = stepped(backend)
    (param,) = optimizer.state
    before = param.detach().clone()
    optimizer.state[param][name].untyped_storage().resize_(size)
    says = f"a storage of {size} bytes" if size else "no memory"
    with pytest.raises(ValueError, match=rf"{name} of parameter 0 .* elements and {says}"):
        optimizer.step()
    assert_same_bits(param, before)


@pytest.mark.parametrize("name", [EXPONENTS, REMAINDER])
def test_what_is_beside_the_states_lies_on_another_device(name: str, backend: str) -> None:
    optimizer = stepped(backend)
    (param,) = optimizer.state
    before = param.detach().clone()
    optimizer.state[param][name] = optimizer.state[param][name].to("meta")
    with pytest.raises(ValueError, match=rf"{name} of parameter 0 .* on cpu.*; .*load"):
        optimizer.step()
    assert_same_bits(param, before)


def test_state_dicts_with_codes_or_bad_remainders() -> None:
    optimizer = stepped("cpu")
    raw = optimizer.state[optimizer.param_groups[0]["params"][0]]
    given = optimizer.state_dict()
    remainder = torch.zeros(100)
    bad = (({0: raw}, "holds values and no codes"), ({0: raw | {REMAINDER: remainder}}, "codes"))
    bad += (({0: given["state"][0] | {REMAINDER: remainder}}, "must be torch.int16"),)
    before = Snapshot(optimizer)
    for state, message in bad:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict({**given, "state": state})
        before.assert_unchanged()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("weight_format", ["plain", "split", "stochastic"])
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_a_bad_gradient_spoils_its_own_element_alone(
    value: float, state_format: str, weight_format: str, backend: str
) -> None:
    """Others of its block go on as if its gradient had been 0, and so had no say."""
    spoilt, twin = (stepped(backend, weight_format=weight_format) for _ in range(2))
    for optimizer, bad in ((spoilt, value), (twin, 0.0)):
        (group,) = optimizer.param_groups
        group["state_format"] = state_format
        (param,) = group["params"]
        with torch.no_grad():
            optimizer.state.clear()
            param[40] = 0.0
        for step in range(3):
            set_random_grads([param], step)
            param.grad[40] = bad if step == 1 else 0.0
            optimizer.step()
    others = torch.arange(100) != 40
    a, b = (optimizer.state_dict()["state"][0] for optimizer in (spoilt, twin))
    for name in STATES:
        assert_same_bits(a[name][others], b[name][others], name)
    (p,), (q,) = spoilt.state, twin.state
    assert_same_bits(p[others], q[others])
    assert not p[40].isfinite()
    p.grad = None
    with pytest.raises(FloatingPointError, match=r"^parameter 0 of group 0 holds .* so do [23] m"):
        spoilt.check_finite()
    assert not a["exp_avg"][40].isfinite()
