"""Which steps are looked at, and that a look changes nothing and survives what users do."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers import (
    OPTIONS,
    assert_same_bits,
    assert_same_training,
    launching,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train,
    train_step,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from adamod_fused import AdaMod, by_reference, release_gradients
from adamod_fused.backends.cpu import CpuBackend

OFF = (
    "the bound is not tracked; make the optimizer with track_bound=True, or call track_bound() "
    "before the steps that are to be seen"
)


def tracked(track_bound: Any, backend: str | None = None, size: int = 10) -> AdaMod:
    return AdaMod(random_params((size,)), **OPTIONS, backend=backend, track_bound=track_bound)


def steps_seen(optimizer: AdaMod, steps: int) -> list[int]:
    """After each step, the number of that which the rows are of."""
    seen = []
    for seed in range(steps):
        train_step(optimizer, seed)
        rows = optimizer.bound_stats()
        seen.append(rows[0]["step"] if rows else 0)
    return seen


def test_every_so_many_steps(backend: str) -> None:
    assert steps_seen(tracked(1, backend), 4) == [1, 2, 3, 4]
    assert steps_seen(tracked(3, backend), 8) == [1, 1, 1, 4, 4, 4, 7, 7]
    assert steps_seen(tracked(True, backend), 202)[98:] == [1] * 2 + [101] * 100 + [201] * 2


def test_turned_on_later_and_off_again() -> None:
    optimizer = tracked(False)
    train(optimizer, range(5))
    with pytest.raises(RuntimeError) as raised:
        optimizer.bound_stats()
    assert str(raised.value) == OFF
    optimizer.track_bound(every=2)
    assert optimizer.bound_stats() == []
    assert steps_seen(optimizer, 3) == [6, 6, 8]
    optimizer.track_bound()
    assert steps_seen(optimizer, 101)[-2:] == [9, 109]
    optimizer.track_bound(0)
    with pytest.raises(RuntimeError, match="not tracked"):
        optimizer.bound_stats("group")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "track_bound must be 0 (off) or a number of steps, got -1"),
        (0.5, TypeError, "track_bound must be True, False or a whole number of steps, got 0.5"),
        ("1", TypeError, "track_bound must be True, False or a whole number of steps, got '1'"),
        (None, TypeError, "track_bound must be True, False or a whole number of steps, got None"),
    ],
)
def test_bad_values(value: Any, error: type[Exception], message: str) -> None:
    optimizer = tracked(1)
    train_step(optimizer, 0)
    for call in (lambda: tracked(value), lambda: optimizer.track_bound(value)):
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value) == message
    assert optimizer.bound_stats()[0]["step"] == 1  # it tracks as before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_bit_of_the_training_changes(
    dtype: torch.dtype, state_format: str, backend: str
) -> None:
    optimizer, twin = make_optimizer(dtype, backend=backend), make_optimizer(dtype, backend=backend)
    optimizer.track_bound(2)
    for seed in range(5):
        train_step(optimizer, seed)
        train_step(twin, seed)
        for param, other in zip(params_of(optimizer), params_of(twin), strict=True):
            assert_same_bits(param.grad, other.grad, "gradient")
    assert_same_training(optimizer, twin)
    assert len(optimizer.bound_stats()) == 4  # of five tensors one is empty


def test_only_steps_that_are_due_are_looked_at(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    observe = by_reference.observe

    def launch_and_note(launch: Callable[[], None], *arguments: Any) -> None:
        looked.append(arguments[-1] is not None)
        launch()

    def observe_and_note(*arguments: Any) -> Any:
        looked[-1] = True
        return observe(*arguments)

    monkeypatch.setattr(CpuBackend, "launcher", launching(launch_and_note))
    monkeypatch.setattr(by_reference, "observe", observe_and_note)
    optimizer = tracked(3, backend)
    for seed in range(7):
        looked += [False] * (backend == "reference")
        train_step(optimizer, seed)
    assert looked == [True, False, False, True, False, False, True]


def test_a_skipped_step_leaves_the_look_before(backend: str) -> None:
    """Several in a row too; a step that is skipped is due no less, and the next is not."""
    (param,) = random_params((10,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend, track_bound=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    seen = []
    for factor in (math.inf, 1.0, 2.0, math.nan, math.inf, math.inf, 3.0):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        rows = optimizer.bound_stats()
        seen.append((rows[0]["step"], rows[0]["grad_norm"]) if rows else None)
    root = math.sqrt(10)
    norms = [(1, root), (2, 2 * root), (2, 2 * root), (2, 2 * root), (2, 2 * root), (3, 3 * root)]
    assert seen[0] is None
    for found, wanted in zip(seen[1:], norms, strict=True):
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize("batch_numel", [1, 100, 1 << 20])
def test_one_look_at_gradients_that_backward_releases(batch_numel: int, backend: str) -> None:
    def train_linear(release: bool) -> list[list[dict[str, Any]]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        options = {**OPTIONS, "maximize": False}
        optimizer = AdaMod(model.named_parameters(), **options, backend=backend, track_bound=2)
        if release:
            release_gradients(model, optimizer, batch_numel=batch_numel)
        found = []
        for seed in range(4):
            optimizer.zero_grad()
            inputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
            model(inputs).square().mean().backward()
            optimizer.step()
            found.append(optimizer.bound_stats() + optimizer.bound_stats("group"))
        return found

    assert train_linear(release=True) == train_linear(release=False)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_step_is_seen_outside_of_the_graph() -> None:
    optimizer, twin = make_optimizer(), make_optimizer()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(AdaMod.step, backend=counter)
    for seed in range(6):
        if seed in (2, 4):  # on, and off again: the graph of before serves
            for each in (optimizer, twin):
                each.track_bound(1 if seed == 2 else 0)
        for each in (optimizer, twin):
            set_random_grads(params_of(each), seed)
        step(optimizer)
        twin.step()
        assert_same_training(optimizer, twin)
        if seed in (2, 3):
            assert optimizer.bound_stats() == twin.bound_stats()
            assert optimizer.bound_stats()[0]["step"] == seed + 1
    assert counter.frame_count == 2  # before there are states, and after


def pickled(optimizer: AdaMod) -> AdaMod:
    buffer = io.BytesIO()
    pickle.dump(optimizer, buffer)
    return pickle.loads(buffer.getvalue())


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_is_not_tracked_until_it_is_asked_to(copied: Callable[[AdaMod], AdaMod]) -> None:
    optimizer = tracked(1)
    train_step(optimizer, 0)
    other = copied(optimizer)
    with pytest.raises(RuntimeError, match="not tracked"):
        other.bound_stats()
    other.track_bound(1)
    for each in (optimizer, other):
        train_step(each, 1)
    assert other.bound_stats() == optimizer.bound_stats()


def test_a_loaded_state_dict_leaves_it_on() -> None:
    optimizer, other = tracked(2), tracked(False)
    train(other, range(5))
    train_step(optimizer, 0)
    before = optimizer.bound_stats()
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    assert optimizer.bound_stats() == before
    assert steps_seen(optimizer, 2) == [1, 7]


def test_rows_are_of_the_groups_at_the_step(backend: str) -> None:
    """A group added, taken away or given another lr later says nothing of what was seen."""
    first, second = random_params((3,), (5,))
    optimizer = AdaMod([("a", first)], **OPTIONS, backend=backend, track_bound=1)
    train_step(optimizer, 0)
    optimizer.add_param_group({"params": [("b", second)], "lr": 0.5})
    assert [row["name"] for row in optimizer.bound_stats()] == ["a"]
    train_step(optimizer, 1)
    optimizer.param_groups.pop()
    optimizer.param_groups[0]["lr"] = 7.0
    rows = [(row["name"], row["group"], row["lr"]) for row in optimizer.bound_stats()]
    assert rows == [("a", 0, OPTIONS["lr"]), ("b", 1, 0.5)]
    assert [row["name"] for row in optimizer.bound_stats("group")] == ["group 0", "group 1"]


def test_a_step_that_fails_leaves_the_look_before(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = tracked(1, "cpu")
    train_step(optimizer, 0)
    before = optimizer.bound_stats()
    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "launcher", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            train_step(optimizer, 1)
    assert optimizer.bound_stats() == before
    train_step(optimizer, 1)
    assert [(row["step"], row["numel"]) for row in optimizer.bound_stats()] == [(2, 10)]


def failing_step(optimizer: AdaMod, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "launcher", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            train_step(optimizer, 1)


def test_a_step_that_fails_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its groups, nor its lr: the next is seen as it is itself."""
    first, second = random_params((3,), (5,))
    optimizer = AdaMod([first], **OPTIONS, backend="cpu", track_bound=1)
    failing_step(optimizer, monkeypatch)
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    optimizer.param_groups[0]["lr"] = 7.0
    train_step(optimizer, 2)
    assert [(row["numel"], row["lr"]) for row in optimizer.bound_stats()] == [(3, 7.0), (5, 0.5)]


def test_the_look_before_a_failed_and_a_skipped_step_is_still_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = tracked(1, "cpu")
    train_step(optimizer, 0)
    before = optimizer.bound_stats()
    failing_step(optimizer, monkeypatch)
    optimizer.found_inf = torch.tensor(1.0)
    train_step(optimizer, 1)
    assert optimizer.bound_stats() == before


def test_looks_up_to_a_number_give_no_rows() -> None:
    optimizer = tracked(2)
    train_step(optimizer, 0)
    assert optimizer.bound_looks == 1
    rows = optimizer.bound_stats()
    assert optimizer.bound_stats(after=0) == rows
    assert optimizer.bound_stats(after=1) == optimizer.bound_stats("group", after=1) == []
    train(optimizer, (1, 2))
    assert [row["step"] for row in optimizer.bound_stats(after=1)] == [3]


def test_a_skipped_look_does_not_hide_the_one_before_that_nobody_asked_for() -> None:
    optimizer = tracked(1)
    train_step(optimizer, 0)
    optimizer.found_inf = torch.tensor(1.0)
    train_step(optimizer, 1)
    assert optimizer.bound_looks == 2
    assert optimizer.bound_stats(after=0)[0]["step"] == 1
    assert optimizer.bound_stats(after=1) == []
