"""States edited by users: by value in any format, and by hand, where codes are no values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    STATES,
    Snapshot,
    assert_same_bits,
    params_of,
    random_params,
    set_random_grads,
    train,
)
from torch import Tensor, nn

from adamod_fused import AdaMod
from adamod_fused.formats import EXPONENTS, REMAINDER, STATE_FORMATS

CODED = ["16bit", "8bit"]
BFLOAT16 = torch.bfloat16


def stepped(
    state_format: str, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, **keywords: Any
) -> AdaMod:
    params = random_params(*shapes or ((40, 3),), dtype=dtype)
    named = {"state_format": state_format, "min_coded_numel": 0}
    optimizer = AdaMod(params, **OPTIONS, **(named | keywords))
    train(optimizer, range(2))
    return optimizer


def saved(optimizer: AdaMod) -> dict[str, Tensor]:
    return copy.deepcopy(optimizer.state_dict()["state"][0])


CONVERSIONS = [Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.long]


@pytest.mark.parametrize("names", [STATES, STATES[:1], STATES[1:2]], ids=" ".join)
@pytest.mark.parametrize("convert", CONVERSIONS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("state_format", CODED)
def test_code_numbers_are_not_taken_for_values(
    state_format: str, convert: Callable[[Tensor], Tensor], names: tuple[str, ...]
) -> None:
    optimizer = stepped(state_format, track_bound=1)
    (param,) = params_of(optimizer)
    seen = optimizer.bound_stats()
    for name in names:
        optimizer.state[param][name] = convert(optimizer.state[param][name])
    set_random_grads([param], 2)
    before = Snapshot(optimizer)
    message = r"of parameter 0 of group 0 has dtype .* beside block_exponents.*state_values"
    for read in (optimizer.step, optimizer.state_dict, optimizer.check_finite):
        with pytest.raises(TypeError, match=message):
            read()
    with pytest.raises(TypeError, match=message), optimizer.state_values(param):
        pass
    before.assert_unchanged()
    assert optimizer.bound_stats() == seen


def test_codes_of_two_formats_are_no_values() -> None:
    optimizer = stepped("8bit")
    entries = optimizer.state[params_of(optimizer)[0]]
    entries["exp_avg_sq"] = entries["exp_avg_sq"].short()
    for read in (optimizer.step, optimizer.state_dict, optimizer.check_finite):
        with pytest.raises(TypeError, match=r"exp_avg_sq of .* has dtype torch.int16 beside"):
            read()


def test_codes_as_floats_are_not_loaded() -> None:
    optimizer = stepped("8bit")
    (param,) = params_of(optimizer)
    raw = {name: value.float() for name, value in optimizer.state[param].items()}
    with pytest.raises(ValueError, match="a state dict holds values and no codes"):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: raw}})


@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_a_state_is_reset_and_the_others_keep_their_bits(state_format: str) -> None:
    optimizer = stepped(state_format)
    (param,) = params_of(optimizer)
    before, entries = saved(optimizer), dict(optimizer.state[param])
    with optimizer.state_values(param) as states:
        assert list(states) == ["step", *STATES]
        assert all(states[name].dtype is torch.float32 for name in STATES)
        states["exp_avg"].zero_()
    after = saved(optimizer)
    assert before["exp_avg"].any()
    assert not after["exp_avg"].any()
    for name in ("step", *STATES[1:]):
        assert_same_bits(after[name], before[name], name)
    for name, tensor in entries.items():  # a CUDA graph may hold their addresses
        assert optimizer.state[param][name] is tensor


@pytest.mark.parametrize(
    ("state_format", "dtype"),
    [
        *((name, dtype) for name in STATE_FORMATS for dtype in (torch.float32, BFLOAT16)),
        ("fp32", torch.float64),
    ],
    ids=str,
)
def test_values_are_read_and_written(state_format: str, dtype: torch.dtype) -> None:
    optimizer = stepped(state_format, (40, 3), dtype=dtype)
    (param,) = params_of(optimizer)
    before = saved(optimizer)
    with optimizer.state_values(param) as states:
        for name in STATES:
            assert_same_bits(states[name], before[name].to(states[name].dtype), name)
        states["exp_avg_sq"][3:5] = 0.25
        states["exp_avg"] = torch.full((40, 3), -2.0)
        states["step"] = 7
    after = saved(optimizer)
    rows = torch.ones(40, dtype=torch.bool)
    rows[3:5] = False
    assert after["step"] == 7
    assert (after["exp_avg"] == -2).all()
    assert (after["exp_avg_sq"][3:5] == 0.25).all()
    # 0.25 is far from the largest of its block in 8bit, whose range is eight octaves.
    if state_format != "8bit":
        assert_same_bits(after["exp_avg_sq"][rows], before["exp_avg_sq"][rows])
    assert_same_bits(after["exp_avg_lr"], before["exp_avg_lr"])


def negate(states: dict[str, Any]) -> None:
    states["exp_avg_lr"][0] = -1.0


BAD_EDITS: list[tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = [
    (negate, ValueError, "exp_avg_lr of parameter 0 of group 0 holds negative values"),
    (lambda s: s.update(step=1.5), ValueError, "step of .* must be a whole number, got 1.5"),
    (lambda s: s.update(exp_avg=torch.ones(3)), ValueError, r"exp_avg of .* has shape \(3,\)"),
    (lambda s: s.update(exp_avg=1.0), TypeError, "exp_avg of .* must be a tensor"),
    (lambda s: s.pop("exp_avg"), ValueError, "values of parameter 0 .* must be step, exp_avg,"),
    (lambda s: s.update(momentum=torch.ones(())), ValueError, "got .*momentum"),
    (lambda s: s["missing"].zero_(), KeyError, "missing"),
]


@pytest.mark.parametrize(("edit", "error", "message"), BAD_EDITS, ids=range(len(BAD_EDITS)))
@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_a_bad_edit_changes_nothing(
    state_format: str, edit: Callable[[dict[str, Any]], Any], error: type[Exception], message: str
) -> None:
    optimizer = stepped(state_format)
    before = Snapshot(optimizer)

    def attempt() -> None:
        with optimizer.state_values(params_of(optimizer)[0]) as states:
            states["exp_avg_sq"].zero_()
            edit(states)

    with pytest.raises(error, match=message):
        attempt()
    before.assert_unchanged()


def edit_again(optimizer: AdaMod) -> None:
    with optimizer.state_values(params_of(optimizer)[0]) as states:
        states["exp_avg"].fill_(0.5)


CHANGES_WITHIN = {
    "a step": lambda optimizer: train(optimizer, range(2, 3)),
    "a load": lambda optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "another edit": edit_again,
}


@pytest.mark.parametrize("name", CHANGES_WITHIN)
@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_an_edit_does_not_undo_what_changed_within_its_block(
    state_format: str, name: str, backend: str
) -> None:
    optimizer = stepped(state_format, backend=backend)
    after = []

    def attempt() -> None:
        with optimizer.state_values(params_of(optimizer)[0]) as states:
            states["exp_avg_sq"].zero_()
            CHANGES_WITHIN[name](optimizer)
            after.append(Snapshot(optimizer))

    with pytest.raises(RuntimeError, match="states of parameter 0 of group 0 changed within"):
        attempt()
    after[0].assert_unchanged()


def test_parameters_without_values() -> None:
    optimizer = AdaMod(random_params((3,)), **OPTIONS)
    for param, message in (
        (params_of(optimizer)[0], "parameter 0 of group 0 has no state"),
        (torch.zeros(5), r"does not have this parameter \(shape \(5,\)\)"),
    ):
        with pytest.raises(ValueError, match=message), optimizer.state_values(param):
            pass
    assert not optimizer.state


WEIGHTS = [
    (torch.float32, "plain"),
    (BFLOAT16, "plain"),
    (BFLOAT16, "split"),
    (BFLOAT16, "stochastic"),
]


@pytest.mark.parametrize(("dtype", "weight_format"), WEIGHTS, ids=str)
@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_rows_are_cut_and_added(state_format: str, dtype: torch.dtype, weight_format: str) -> None:
    optimizer = stepped(
        state_format, (7, 5), (43, 3), dtype=dtype, weight_format=weight_format, seed=3
    )
    other, old = params_of(optimizer)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    kept = torch.arange(43) % 4 != 1
    added = torch.zeros(2, 3)
    new = nn.Parameter(torch.cat([old.detach()[kept], torch.ones(2, 3, dtype=dtype)]))
    seen: list[str] = []

    def change(name: str, values: Tensor) -> Tensor:
        seen.append(name)
        return torch.cat([values[kept], added])

    optimizer.replace_param(old, new, change)
    names = [*STATES, *[REMAINDER] * (weight_format == "split")]
    assert seen == names
    assert [id(p) for p in params_of(optimizer)] == [id(other), id(new)]
    assert list(optimizer.state) == [other, new]
    after = optimizer.state_dict()["state"]
    assert_same_bits(after[1]["step"], before[1]["step"])
    for name in names:
        assert_same_bits(after[0][name], before[0][name], name)
        assert not after[1][name][-2:].any()
        # 8bit states have other neighbours now, which decide their range.
        expected = before[1][name][kept].float()
        same = (after[1][name][:-2].float() == expected).float().mean()
        assert same == 1 if state_format != "8bit" or name == REMAINDER else same > 0.8
    train(optimizer, range(2, 4))
    assert optimizer.state[new]["step"] == 4


def test_columns_of_a_whole_layer_are_cut_and_data_is_replaced() -> None:
    optimizer = stepped("16bit", (6, 40))
    (param,) = params_of(optimizer)
    before = saved(optimizer)
    kept = torch.arange(40) != 3
    param.data = param.data[:, kept]
    param.grad = None
    optimizer.replace_param(param, param, lambda name, values: values[:, kept])
    after = saved(optimizer)
    for name in STATES:
        assert_same_bits(after[name], before[name][:, kept], name)
    train(optimizer, range(1))


def test_a_parameter_is_replaced_before_its_first_step() -> None:
    old, new = random_params((3,), (4,))
    optimizer = AdaMod([old], **OPTIONS)
    optimizer.replace_param(old, new, lambda name, values: values / 0)
    assert params_of(optimizer) == [new]
    assert not optimizer.state
    train(optimizer, range(1))


BAD_REPLACEMENTS: list[tuple[Any, Any, type[Exception], str]] = [
    (torch.zeros(5), lambda n, v: v, ValueError, r"exp_avg of .* has shape \(40, 3\), the param"),
    (torch.zeros(5, dtype=torch.int8), lambda n, v: v[:5, 0], TypeError, "dtype torch.int8"),
    (torch.zeros(5), lambda n, v: None, TypeError, "change must return a tensor for exp_avg of"),
    (torch.zeros(5), lambda n, v: v[:5, 0].abs().neg() - 1, ValueError, "exp_avg_sq .* negative"),
    (torch.zeros(5, requires_grad=True) * 2, lambda n, v: v[:5, 0], ValueError, "by a leaf"),
    (None, lambda n, v: v, TypeError, "can only be replaced by a tensor, got None"),
]


@pytest.mark.parametrize(("new", "change", "error", "message"), BAD_REPLACEMENTS, ids=range(6))
@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_a_bad_replacement_changes_nothing(
    state_format: str, new: Any, change: Any, error: type[Exception], message: str
) -> None:
    optimizer = stepped(state_format)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.replace_param(params_of(optimizer)[0], new, change)
    before.assert_unchanged()


def test_one_tensor_for_all_states_is_copied() -> None:
    optimizer = stepped("fp32")
    (old,) = params_of(optimizer)
    zeros, new = torch.zeros(1).expand(5), nn.Parameter(torch.zeros(5))
    optimizer.replace_param(old, new, lambda name, values: zeros)
    train(optimizer, range(1))
    two = AdaMod(random_params((2,), (3,)), **OPTIONS)
    with pytest.raises(ValueError, match="is in this optimizer already"):
        two.replace_param(*params_of(two), lambda name, values: values)


@pytest.mark.parametrize("state_format", CODED)
def test_rows_that_are_cut_by_hand_are_noticed(state_format: str, backend: str) -> None:
    """4,128 elements and 4,097 have as many blocks."""
    optimizer = stepped(state_format, (4128,), backend=backend)
    (param,) = params_of(optimizer)
    entries = optimizer.state[param]
    for name in STATES:
        entries[name] = entries[name][31:].clone()
    message = "block_exponents of parameter 0 .* 4128 elements, and the states have 4097.*replace_"
    with pytest.raises(ValueError, match=message):
        optimizer.state_dict()
    param.data = param.data[31:].clone()
    set_random_grads([param], 0)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: o])
def test_exponents_know_their_elements_in_copies_and_may_not_know(way: Any) -> None:
    optimizer = way(stepped("8bit", (4128,)))
    (param,) = params_of(optimizer)
    entries = optimizer.state[param]
    assert entries[EXPONENTS].coded_numel == 4128
    assert not any("numel" in name for name in optimizer.state_dict()["state"][0])
    entries[EXPONENTS] = entries[EXPONENTS].clone()  # as on a way to another device and back
    assert not hasattr(entries[EXPONENTS], "coded_numel")
    train(optimizer, range(1))
    optimizer.param_groups[0]["min_coded_numel"] = 1  # a new plan
    train(optimizer, range(1))
    assert entries[EXPONENTS].coded_numel == 4128


def test_the_remainder_of_a_split_weight_is_read_and_reset() -> None:
    optimizer = stepped("8bit", dtype=BFLOAT16, weight_format="split")
    (param,) = params_of(optimizer)
    with torch.no_grad():
        param.fill_(1.0)
    with optimizer.state_values(param) as states:
        assert states[REMAINDER].dtype is torch.int16
        assert states[REMAINDER].any()
        states[REMAINDER].zero_()
    assert not optimizer.state[param][REMAINDER].any()
