"""How the benchmark takes time on a CPU: what is inside the clock, and what a step works on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from bench_work import CPU, PARAMS, contestant, work
from helpers import launching

from adamod_fused import AdaMod
from adamod_fused.backends.cpu import CpuBackend
from bench.clocks import CpuClock, Samples
from bench.contestants import Contestant, ours
from bench.roofline import Roofline
from bench.work import ValuesAndGrads, Work


class Time:
    """A clock that stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_gradients_are_made_outside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    make_grads = Work.make_grads

    def slow_make_grads(self: Work, turn: int = 0) -> None:
        time.now += 1000
        make_grads(self, turn)

    seconds = iter([7.0, *[0.25] * 3] * 2)  # the first of a block does not count

    def step() -> None:
        time.now += next(seconds)

    monkeypatch.setattr(Work, "make_grads", slow_make_grads)
    made = contestant(on_step=step)
    samples = CpuClock(time).measure(work(made), work(made), 3)
    assert samples == Samples(step_ms=[250.0] * 3, host_us=[250_000.0] * 3)
    assert time.now == 8 * 1000 + 2 * 7.75


def test_every_step_has_gradients_of_its_own() -> None:
    log: list[Any] = []
    made = work(contestant(log=log))
    CpuClock().measure(made, None, 4)
    tensors = [grad for grads in log for grad in grads]  # all alive, so that no two share an id
    assert len({id(tensor) for tensor in tensors}) == len({t.data_ptr() for t in tensors}) == 10
    assert [t.shape for t in log[0]] == [torch.Size(shape) for shape in PARAMS.shapes]
    assert all(torch.equal(a, b) for a, b in zip(log[0], log[3], strict=True))
    assert log[0][0].any()


def test_contestants_start_with_the_same_and_share_nothing() -> None:
    data = ValuesAndGrads.make(PARAMS.shapes, torch.bfloat16, CPU)
    a, b = (Work(contestant(), data, copies=2) for _ in range(2))
    params = [*itertools.chain(*a._sets, *b._sets)]
    assert len({param.data_ptr() for param in params}) == len(params) == 8
    for param, value in zip(params, data.values * 4, strict=True):
        assert param.dtype == torch.bfloat16
        assert torch.equal(param, value)


def coded(state_format: str, weight_format: str = "plain"):
    return partial(
        AdaMod, state_format=state_format, weight_format=weight_format, min_coded_numel=0
    )


def test_the_kernels_time_is_within_the_steps() -> None:
    launcher = CpuBackend.launcher
    samples = CpuClock().measure(work(ours("cpu")), None, 5)
    assert CpuBackend.launcher is launcher
    assert len(samples.kernel_us) == len(samples.step_ms) == 5
    for step_ms, kernel_us in zip(samples.step_ms, samples.kernel_us, strict=True):
        assert 0 < kernel_us < step_ms * 1e3
    assert CpuClock().measure(work(contestant()), None, 5).kernel_us == []


def test_the_kernels_time_is_that_of_all_batches_of_a_step() -> None:
    def make(params):
        groups = [{"params": params[:1], "state_format": "8bit"}, {"params": params[1:]}]
        return AdaMod(groups, backend="cpu", min_coded_numel=0)

    calls = []

    def counted(launch, *arguments):
        calls.append(arguments)
        launch()

    with patch.object(CpuBackend, "launcher", launching(counted)):
        now = itertools.count()
        samples = CpuClock(lambda: next(now)).measure(
            work(replace(ours("cpu"), make=make)), None, 3
        )
    assert len(calls) == 2 * 4
    assert samples.kernel_us == [2e6] * 3  # each call takes one tick of this clock
    assert samples.step_ms == [5e3] * 3


STATE_BYTES = [
    (lambda params: AdaMod(params), torch.float32, 12),
    (coded("16bit"), torch.float32, 6 + 3 / 32),
    (coded("8bit"), torch.float32, 3 + 3 / 32),
    (coded("8bit", "split"), torch.bfloat16, 5 + 3 / 32),
    (coded("8bit", "stochastic"), torch.bfloat16, 3 + 3 / 32),
    (lambda params: AdaMod(params), torch.bfloat16, 12),
    (lambda params: AdaMod(params), torch.float64, 24),
    (lambda params: torch.optim.Adam(params, fused=True), torch.float32, 8),
    (lambda params: torch.optim.Adam(params), torch.bfloat16, 4),
    (lambda params: torch.optim.SGD(params), torch.float32, 0),
]


@pytest.mark.parametrize(("make", "dtype", "expected"), STATE_BYTES)
def test_state_is_counted_where_it_grows_with_the_parameters(
    make: Any, dtype: torch.dtype, expected: float
) -> None:
    made = Work(
        Contestant("", "", make, lambda *_: None), ValuesAndGrads.make(PARAMS.shapes, dtype, CPU)
    )
    assert made.state_bytes() == 0
    made.make_grads()
    made.step()
    assert made.state_bytes() == expected * PARAMS.numel


class Quantized(torch.Tensor):
    """A state of three tensors, one of them everybody's."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale", "map"], None


def in_a_subclass() -> torch.Tensor:
    return torch.zeros(1).as_subclass(Quantized)


@pytest.mark.parametrize("holder", [in_a_subclass, SimpleNamespace])
def test_quantized_states_are_counted_by_their_parts(holder: Callable[[], Any]) -> None:
    shared = torch.zeros(256)

    class EightBit(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for param in self.param_groups[0]["params"]:
                state = holder()
                state.codes = torch.zeros(param.numel(), dtype=torch.uint8)
                state.scale, state.map = torch.zeros(param.numel() // 16), shared
                self.state[param] = {"exp_avg": state, "step": torch.zeros(1), "more": [None, 3]}

    made = work(Contestant("", "", lambda params: EightBit(params), lambda *_: None))
    made.step()
    assert made.state_bytes() == PARAMS.numel + PARAMS.numel // 16 * 4 + 256 * 4


def test_the_roofline_counts_bytes_read_and_written() -> None:
    roofline = Roofline(CpuClock(), largest=1 << 20)
    assert (roofline.copy, roofline.in_place) == (None, None)
    times = itertools.count()
    roofline._clock = CpuClock(now=lambda: next(times) * 1e-3)  # every call takes a millisecond
    roofline.sample()
    roofline.sample()
    expected = 2 * (1 << 20) / 1e-3 / 1e9
    for spread in (roofline.copy, roofline.in_place):
        assert (spread.min, spread.max) == pytest.approx((expected, expected), rel=1e-5)
        assert spread.n == 12
