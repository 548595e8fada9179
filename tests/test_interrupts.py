"""A signal whose handler raises, such as Ctrl-C, never leaves half a step behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import STATES, assert_same_bits
from torch import Tensor

from adamod_fused import AdaMod
from adamod_fused.exclusion import Exclusion
from adamod_fused.interrupts import deferred


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler: a process that a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make(kind: str) -> AdaMod:
    """Two batches, and for "staged" a parameter that has gaps."""
    torch.manual_seed(3)
    tensors = [torch.randn(40, 30), torch.randn(50, dtype=torch.float64), torch.randn(7, 9)]
    if kind == "staged":
        tensors[2] = torch.randn(7, 18)[:, ::2]
    params = [torch.nn.Parameter(tensor) for tensor in tensors]
    optimizer = AdaMod(params, lr=0.1, backend="reference" if kind == "reference" else "cpu")
    for _ in range(2):  # the plan and its states are there
        set_grads(optimizer)
        optimizer.step()
    set_grads(optimizer)
    return optimizer


def set_grads(optimizer: AdaMod) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad = param.detach() * 0.5


def tensors_of(optimizer: AdaMod) -> list[Tensor]:
    params = optimizer.param_groups[0]["params"]
    states = [optimizer.state[p][name] for p in params for name in ("step", *STATES)]
    return [tensor.detach().clone() for tensor in (*params, *states)]


class Line:
    """Raises SIGINT before the ``number``-th line of Python code of the package in a step."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame, event: str, _) -> Callable | None:
        if "adamod_fused" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


def step_with_an_interrupt(optimizer: AdaMod, number: int) -> bool:
    """Whether the interrupt came."""
    before = sys.gettrace()
    line = Line(number)
    try:
        sys.settrace(line)
        optimizer.step()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    assert line.left > 0, "the interrupt was lost"
    return False


@pytest.mark.parametrize(("kind", "every"), [("plain", 1), ("staged", 1), ("reference", 9)])
def test_a_step_is_whole_or_not(kind: str, every: int) -> None:
    """An interrupt before any line: afterwards all is as before the step, or as after it."""
    optimizer = make(kind)
    before = tensors_of(optimizer)
    optimizer.step()
    after = tensors_of(optimizer)
    outcomes = []
    number = 1
    while True:
        optimizer = make(kind)
        came = step_with_an_interrupt(optimizer, number)
        now = tensors_of(optimizer)
        stepped = not torch.equal(now[0], before[0])
        for tensor, expected in zip(now, after if stepped else before, strict=True):
            assert_same_bits(tensor, expected, f"an interrupt before line {number}")
        if not came:
            break
        outcomes.append(stepped)
        if not stepped:
            optimizer.step()  # nothing is held, and the step can be done again
            for tensor, expected in zip(tensors_of(optimizer), after, strict=True):
                assert_same_bits(tensor, expected, f"a step after one at line {number}")
        number += every
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("call", ["step", "clip"])
def test_nothing_is_held_after_an_interrupt(call: str) -> None:
    optimizer = make("plain")
    exclusion: Exclusion = optimizer._exclusion
    for number in range(1, 60):
        sys.settrace(Line(number))
        try:
            optimizer.step() if call == "step" else optimizer.clip_grad_norm_(1.0)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        with exclusion.of("the test"):
            pass


def test_deferred_handlers_run_in_order_at_the_end() -> None:
    seen = []
    previous = {
        number: signal.signal(number, lambda number, _: seen.append(number))
        for number in (signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        with deferred():
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR1)
            assert seen == []
        assert seen == [signal.SIGUSR2, signal.SIGUSR1]
        signal.raise_signal(signal.SIGUSR1)
        assert seen[2:] == [signal.SIGUSR1]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_an_error_inside_keeps_the_handlers() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), deferred():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is handler
