"""States in few bits and weights in two parts: steps, state dicts, changes of format, reports."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    STATES,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
    train,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adamod_fused import AdaMod, backends, checkpoint, codes, coding, release_gradients
from adamod_fused.formats import EXPONENTS, REMAINDER, STATE_FORMATS, WEIGHT_FORMATS

SHAPES = ((7, 5), (33,), (), (0,), (3, 40))
FORMATS = [f for f in itertools.product(STATE_FORMATS, WEIGHT_FORMATS) if f != ("fp32", "plain")]
CODED = [f for f in FORMATS if f[0] != "fp32"]
BFLOAT16 = torch.bfloat16


def make(
    formats: tuple[str, str], backend: str | None = None, start: int = 0, **keywords: Any
) -> AdaMod:
    params = random_params(*SHAPES, dtype=BFLOAT16, seed=start)
    params[0].data = params[0].data.t()  # elements in memory are in another order
    named = {"state_format": formats[0], "weight_format": formats[1], "min_coded_numel": 0}
    return AdaMod(params, **(OPTIONS | named | keywords), backend=backend)


def make_for(
    kernel: tuple[str, torch.device], dtype: torch.dtype, formats: tuple[str, str], **keywords: Any
) -> AdaMod:
    """Sizes around those that kernels move at a time, the same values on every device."""
    backend, device = kernel
    params = [
        torch.nn.Parameter(p.detach().to(device))
        for p in random_params((0,), (31,), (33, 32), (700,), (9001,), dtype=dtype)
    ]
    params[2].data = params[2].data.t()
    named = {"state_format": formats[0], "weight_format": formats[1], "min_coded_numel": 0}
    return AdaMod(params, **(OPTIONS | named | keywords), backend=backend)


def train_on(optimizer: AdaMod, steps: range) -> None:
    for step in steps:
        on_host = [torch.nn.Parameter(p.detach().cpu()) for p in params_of(optimizer)]
        set_random_grads(on_host, step)
        for param, twin in zip(params_of(optimizer), on_host, strict=True):
            param.grad = twin.grad.to(param.device)
        optimizer.step()


EVERY_FORMAT = [
    (dtype, formats)
    for dtype in (torch.float32, BFLOAT16, torch.float16)
    for formats in FORMATS
    if dtype is BFLOAT16 or formats[1] == "plain"
]


@pytest.mark.parametrize(("dtype", "formats"), EVERY_FORMAT, ids=str)
def test_kernels_equal_the_reference(
    dtype: torch.dtype, formats: tuple[str, str], kernel: tuple[str, torch.device]
) -> None:
    fast = make_for(kernel, dtype, formats)
    slow = make_for(("reference", torch.device("cpu")), dtype, formats)
    train_on(fast, range(4))
    train_on(slow, range(4))
    for a, b in zip(params_of(fast), params_of(slow), strict=True):
        assert_same_bits(a.cpu(), b, "parameter")
        assert fast.state[a].keys() == slow.state[b].keys()
        for name, value in slow.state[b].items():
            assert_same_bits(fast.state[a][name].cpu(), value, name)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_entries_beside_the_states(formats: tuple[str, str], backend: str) -> None:
    optimizer = make(formats, backend)
    train(optimizer, range(1))
    entries = optimizer.state[params_of(optimizer)[4]]
    names = [EXPONENTS] * (formats[0] != "fp32") + [REMAINDER] * (formats[1] == "split")
    assert list(entries) == ["step", *STATES, *names]
    sizes = {entries[name].dtype.itemsize for name in STATES}
    assert sizes == {STATE_FORMATS[formats[0]]}


def test_split_weights_train_as_float32_ones(backend: str) -> None:
    split = make(("fp32", "split"), backend)
    whole = AdaMod(
        [torch.nn.Parameter(p.detach().float()) for p in params_of(split)],
        **OPTIONS,
        backend=backend,
    )
    for step in range(5):
        set_random_grads(params_of(split), step)
        for a, b in zip(params_of(whole), params_of(split), strict=True):
            a.grad = b.grad.float()
        split.step()
        whole.step()
    for a, b in zip(params_of(whole), params_of(split), strict=True):
        remainder = split.state[b][REMAINDER]
        assert_same_bits(codes.joined(b.detach(), remainder), a.detach())
        assert not b.numel() or remainder.any()


@pytest.mark.parametrize("weight_format", ["plain", "stochastic"])
def test_the_seed_decides_the_random_bits(backend: str, weight_format: str) -> None:
    one, same, other = (
        make(("8bit", weight_format), backend, lr=1e-3, seed=seed) for seed in (1, 1, 2)
    )
    for optimizer in (one, same, other):
        train(optimizer, range(3))
    assert_same_training(one, same)
    state = [o.state[params_of(o)[4]]["exp_avg_sq"] for o in (one, other)]
    assert not torch.equal(*state)


def by_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_tensors(state_dict: dict[str, Any]) -> dict[str, Any]:
    return checkpoint.from_tensors(*checkpoint.to_tensors(state_dict))


@pytest.mark.parametrize("way", [copy.deepcopy, by_file, by_tensors])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_resumed_training_equals_uninterrupted_training(formats, way, backend: str) -> None:
    whole, first = make(formats, backend, seed=5), make(formats, backend, seed=5)
    train(whole, range(5))
    train(first, range(2))
    resumed = make(formats, backend, start=9)
    with torch.no_grad():
        for param, saved in zip(params_of(resumed), params_of(first), strict=True):
            param.copy_(saved)
    resumed.load_state_dict(way(first.state_dict()))
    assert resumed.param_groups[0]["seed"] == 5
    train(resumed, range(2, 5))
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_values_of_a_state_dict_are_put_into_the_state(
    formats: tuple[str, str], backend: str
) -> None:
    """As ZeroRedundancyOptimizer loads."""
    whole, resumed = make(formats, backend), make(formats, backend, start=9)
    train(whole, range(2))
    saved = copy.deepcopy(whole.state_dict())
    train(resumed, range(1))  # it has a plan
    for i, (param, twin) in enumerate(zip(params_of(resumed), params_of(whole), strict=True)):
        param.data.copy_(twin.data)
        resumed.state[param] = saved["state"][i]
    train(resumed, range(2, 4))
    train(whole, range(2, 4))
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_copies_keep_codes(formats: tuple[str, str], way) -> None:
    optimizer = make(formats)
    train(optimizer, range(2))
    twin = way(optimizer)
    assert_same_training(twin, optimizer)
    train(optimizer, range(2, 4))
    train(twin, range(2, 4))
    assert_same_training(twin, optimizer)


@pytest.mark.parametrize("formats", CODED, ids=str)
def test_state_dicts_hold_values(formats: tuple[str, str]) -> None:
    optimizer = make(formats)
    train(optimizer, range(2))
    before = copy.deepcopy(optimizer)
    seen: list[Tensor] = []
    optimizer.register_state_dict_post_hook(
        lambda _, made: seen.append(made["state"][0]["exp_avg"])
    )
    saved = optimizer.state_dict()
    assert seen[0].is_floating_point()  # as hooks of the user's see it too
    dtype = {"16bit": torch.float32, "8bit": BFLOAT16}[formats[0]]
    for i, param in enumerate(params_of(optimizer)):
        assert EXPONENTS not in saved["state"][i]
        entries = optimizer.state[param]
        flat = [entries[name].as_strided((param.numel(),), (1,)) for name in STATES]
        values = codes.decode(AdaMod.rule.values, flat, entries[EXPONENTS])
        for name, value in zip(STATES, values, strict=True):
            given = saved["state"][i][name]
            assert given.stride() == entries[name].stride()
            assert_same_bits(given, given.to(dtype))
            assert_same_bits(given.as_strided((param.numel(),), (1,)).float(), value)
    assert_same_training(optimizer, before)


def values_of(optimizer: AdaMod) -> list[dict[str, Tensor]]:
    saved = optimizer.state_dict()["state"]
    return [{name: saved[i][name].float() for name in STATES} for i in sorted(saved)]


@pytest.mark.parametrize("after", ["fp32", "16bit", "8bit"])
@pytest.mark.parametrize("before", ["fp32", "16bit", "8bit"])
def test_a_change_of_format_keeps_values(before: str, after: str, backend: str) -> None:
    optimizer = make((before, "plain"), backend)
    train(optimizer, range(3))
    old = values_of(optimizer)
    optimizer.param_groups[0]["state_format"] = after
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    loaded = make((after, "plain"), backend)
    loaded.load_state_dict(
        {
            **optimizer.state_dict(),
            "param_groups": [{**optimizer.state_dict()["param_groups"][0], "state_format": "fp32"}],
        }
    )
    new = values_of(loaded)
    optimizer._refreshed_plan()
    for a, b, given in zip(values_of(optimizer), new, old, strict=True):
        for name in STATES:
            assert_same_bits(a[name], b[name])  # a plan and a load convert alike
            if STATE_FORMATS[after] >= STATE_FORMATS[before]:
                assert_same_bits(b[name], given[name])
    train(optimizer, range(3, 4))
    assert {t.dtype.itemsize for e in optimizer.state.values() for t in (e["exp_avg"],)} == {
        STATE_FORMATS[after]
    }


@pytest.mark.parametrize("k", range(3), ids=STATES.__getitem__)
def test_values_become_the_nearest_codes(k: int, backend: str) -> None:
    optimizer = make(("8bit", "plain"), backend)
    train(optimizer, range(1))
    given = copy.deepcopy(optimizer.state_dict())
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 40, generator=generator).exp() ** 2
    values[1] *= torch.randn(40, generator=generator).sign() if k == 0 else 1
    given["state"][4][STATES[k]] = values
    optimizer.load_state_dict(given)
    code = codes.Code(AdaMod.rule.values[k], 1)
    magnitudes = torch.arange(code.top + 1)
    exponents = optimizer.state[params_of(optimizer)[4]][EXPONENTS][:, k : k + 1].long()
    grid = code.decode(magnitudes, exponents).repeat_interleave(codes.BLOCK, 0)[:120]
    grid = grid if k == 0 else grid[:, 1:]  # zero is for zeros alone
    magnitude = values.flatten().abs()
    got = optimizer.state_dict()["state"][4][STATES[k]].flatten().float()
    distance = (grid - magnitude[:, None]).abs().amin(1)
    assert torch.equal((got.abs() - magnitude).abs(), distance)
    assert torch.equal(got.sign() * (got != 0), values.flatten().sign() * (got != 0))


class LargestFloats(TorchDispatchMode):
    """How many elements the largest float32 tensor has that is made while this lasts."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype is torch.float32 and not made._is_view():
            self.numel = max(self.numel, made.numel())
        return made


def test_a_load_makes_no_float32_states_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be four times what is kept, of all parameters at once."""
    params = random_params((4096,))
    optimizer = AdaMod(params, **OPTIONS, state_format="8bit")
    train(optimizer, range(1))
    saved = optimizer.state_dict()
    monkeypatch.setattr(backends, "coder", lambda tensor: None)  # the oracle needs the most room
    monkeypatch.setattr(coding, "SLICE", 1024)
    with LargestFloats() as seen:
        optimizer.load_state_dict(saved)
    assert seen.numel <= 1024


def test_weights_stop_and_start_to_be_split(backend: str) -> None:
    optimizer = make(("8bit", "split"), backend)
    train(optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for weight_format in ("stochastic", "split", "plain"):
        optimizer.param_groups[0]["weight_format"] = weight_format
        optimizer._refreshed_plan()
        for entries in optimizer.state.values():
            assert (REMAINDER in entries) == (weight_format == "split")
            assert not entries.get(REMAINDER, torch.zeros(1)).any()
    optimizer.load_state_dict(saved)  # formats are the live optimizer's
    assert optimizer.param_groups[0]["weight_format"] == "plain"
    assert not any(REMAINDER in entries for entries in optimizer.state.values())
    for entries in saved["state"].values():
        del entries[REMAINDER]
    again = make(("8bit", "split"), backend)
    again.load_state_dict(saved)
    assert not any(entries[REMAINDER].any() for entries in again.state.values())


def test_small_parameters_keep_float32_states() -> None:
    optimizer = make(("8bit", "split"), min_coded_numel=36)
    train(optimizer, range(1))
    kinds = [optimizer.state[param]["exp_avg"].dtype for param in params_of(optimizer)]
    assert kinds == [torch.float32] * 4 + [torch.uint8]
    report = optimizer.memory_report()
    entries = [e for state in optimizer.state.values() for n, e in state.items() if n != "step"]
    assert report.total.state_bytes + report.total.weight_bytes == sum(e.nbytes for e in entries)
    assert [(row.state_format, row.num_params, row.numel) for row in report] == [
        ("fp32", 4, 69),
        ("8bit", 1, 120),
    ]
    assert report[1].state_bytes == 3 * 120 + 3 * 4
    assert (report[1].plain_bytes, report[1].adam_bytes) == (12 * 120, 4 * 120)
    assert str(report).splitlines()[-1].split()[0] == "total"
    large = AdaMod([torch.zeros(1 << 20)], state_format="8bit").memory_report()[0]
    assert large.bytes_per_element <= 3.1


@pytest.mark.parametrize("formats", FORMATS, ids=str)
@pytest.mark.usefixtures("nothing_compiled")  # or dynamo compiles the first eight alone
def test_clip_release_and_compile_step_alike(formats: tuple[str, str], backend: str) -> None:
    plain, clipped, compiled, released = (make(formats, backend) for _ in range(4))
    model = torch.nn.Module()
    for i, param in enumerate(params_of(released)):
        model.register_parameter(f"p{i}", param)
    release_gradients(model, released)
    step = torch.compile(compiled.step, backend="eager")
    for i in range(2):
        for optimizer in (plain, clipped, compiled):
            set_random_grads(params_of(optimizer), i)
        grads = [param.grad for param in params_of(plain)]
        sum((p * g).sum() for p, g in zip(params_of(released), grads, strict=True)).backward()
        clipped.clip_grad_norm_(1e6)
        for take in (plain.step, clipped.step, step, released.step):
            take()
    for other in (clipped, compiled, released):
        assert_same_training(other, plain)


def test_a_skipped_step_changes_nothing(backend: str) -> None:
    optimizer = make(("8bit", "split"), backend)
    train(optimizer, range(1))
    before = copy.deepcopy(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    train(optimizer, range(1, 2))
    assert_same_training(optimizer, before)


@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_state_dicts_are_converted(state_format: str) -> None:
    source, coded = make(("fp32", "split")), make((state_format, "split"))
    train(source, range(2))
    given = copy.deepcopy(source.state_dict())
    converted = checkpoint.convert_format(source.state_dict(), state_format=state_format)
    coded.load_state_dict(given)
    assert converted["param_groups"][0]["state_format"] == state_format
    for i, entries in coded.state_dict()["state"].items():
        assert entries.keys() == converted["state"][i].keys()
        for name, value in entries.items():
            assert_same_bits(converted["state"][i][name], value)
            assert_same_bits(source.state_dict()["state"][i][name], given["state"][i][name])
    back = checkpoint.convert_format(converted, state_format="fp32", weight_format="plain")
    for i, entries in back["state"].items():
        assert list(entries) == ["step", *STATES]
        for name in STATES:
            assert_same_bits(entries[name], converted["state"][i][name].float())
    adamw = checkpoint.export(coded)
    assert "state_format" not in adamw["param_groups"][0]
    assert_same_bits(adamw["state"][0]["exp_avg"], back["state"][0]["exp_avg"])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_parameter_that_misses_the_first_step_in_a_new_format_is_converted_in_the_next(
    backend: str,
) -> None:
    first, second = random_params((3,), (3,), dtype=torch.bfloat16)
    optimizer = AdaMod([first, second], weight_format="split", backend=backend)
    train(optimizer, range(1))
    optimizer.param_groups[0]["weight_format"] = "plain"
    second.grad = None
    optimizer.step()
    train(optimizer, range(1))
    assert "param_remainder" not in optimizer.state[second]
