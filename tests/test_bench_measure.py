"""How the benchmark takes time: what is inside the clock, and what is made of the samples."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from adamod_fused import AdaMod
from adamod_fused.backends.cpu import CpuBackend
from bench.clocks import CpuClock, Samples
from bench.contestants import BASELINE, Contestant, ours
from bench.cuda_clock import LONGEST_SLEEP, CudaClock, copies, kernels
from bench.lists import ParamList
from bench.measure import Comparison, Effort, groups
from bench.roofline import Roofline
from bench.work import FIRST_SLEEP, ValuesAndGrads, Work

CPU = torch.device("cpu")
PARAMS = ParamList("two", ((4, 8), (32,)), "made up")


class Time:
    """A clock that stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Optimizer(torch.optim.SGD):
    """Says what it is given, and takes the time it is told."""

    def __init__(self, params: Any, log: list[Any], on_step: Callable[[], None]) -> None:
        super().__init__(params)
        self.log, self.on_step = log, on_step

    def step(self, closure: Any = None) -> None:
        self.log.append([p.grad for group in self.param_groups for p in group["params"]])
        assert not gc.isenabled(), "a pass of Python's garbage collector would be timed"
        self.on_step()


def contestant(
    name: str = "slow", log: list[Any] | None = None, on_step: Callable[[], None] = lambda: None
) -> Contestant:
    seen = [] if log is None else log
    return Contestant(name, "torch", lambda p: Optimizer(p, seen, on_step), lambda *_: None)


def work(made: Contestant, copies: int = 1) -> Work:
    return Work(made, ValuesAndGrads.make(PARAMS.shapes, torch.float32, CPU), copies)


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


def test_the_kernels_time_is_within_the_steps() -> None:
    run = CpuBackend.run
    samples = CpuClock().measure(work(ours("cpu")), None, 5)
    assert CpuBackend.run is run
    assert len(samples.kernel_us) == len(samples.step_ms) == 5
    for step_ms, kernel_us in zip(samples.step_ms, samples.kernel_us, strict=True):
        assert 0 < kernel_us < step_ms * 1e3
    assert CpuClock().measure(work(contestant()), None, 5).kernel_us == []


STATE_BYTES = [
    (lambda params: AdaMod(params), torch.float32, 12),
    (lambda params: AdaMod(params), torch.bfloat16, 12),
    (lambda params: AdaMod(params), torch.float64, 24),
    (lambda params: torch.optim.Adam(params, fused=True), torch.float32, 8),
    (lambda params: torch.optim.Adam(params), torch.bfloat16, 4),
    (lambda params: torch.optim.SGD(params), torch.float32, 0),
]


@pytest.mark.parametrize(("make", "dtype", "expected"), STATE_BYTES)
def test_state_is_counted_where_it_grows_with_the_parameters(
    make: Any, dtype: torch.dtype, expected: int
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


class Costs:
    """A CPU clock for contestants whose steps take a known time, and who are asked in turn."""

    device, twins = CPU, True

    def __init__(self, seconds: dict[str, float], free: int = 1 << 40) -> None:
        self.seconds_of, self.free, self.asked = seconds, free, []

    def copies(self, set_bytes: int, tensors: int) -> int:
        return 1

    def measure(self, work: Work, twin: Work | None, steps: int) -> Samples:
        work.make_grads()
        with_optimizer = self.seconds_of[work.contestant.name]
        self.asked.append((work.contestant.name, steps))
        work.step()
        return Samples([with_optimizer * 1e3] * steps, [with_optimizer * 2e5] * steps)

    def peak_bytes(self, work: Work) -> int | None:
        return None

    launches = peak_bytes

    def free_bytes(self) -> int:
        return self.free


def adam(name: str) -> Contestant:
    return Contestant(name, "torch", lambda params: torch.optim.Adam(params), lambda *_: None)


def test_contestants_alternate() -> None:
    clock = Costs({"a": 0.1, "b": 0.2, "c": 0.3})
    comparison = Comparison(PARAMS, torch.float32, clock, [adam(name) for name in "abc"])
    comparison.warm_up(Effort(seconds=1e-9, rounds=3))
    assert [name for name, _ in clock.asked] == [*"aabbcc"]
    clock.asked.clear()
    for _ in range(3):
        comparison.round()
    assert clock.asked == [("a", 1), ("b", 1), ("c", 1)] * 3  # never less than a step each
    assert [r.step_ms.n for r in comparison.results(50.0)] == [3, 3, 3]


def test_slow_contestants_take_fewer_steps() -> None:
    effort = Effort(seconds=12.0, rounds=5, most=50)  # of a round 0.2 s for each of twelve
    assert effort.steps(cost=0.0099, contestants=12) == 20
    assert effort.steps(cost=0.09, contestants=12) == 2
    assert effort.steps(cost=10.0, contestants=12) == 1
    assert effort.steps(cost=1e-6, contestants=12) == 50


def test_results_are_made_of_the_samples() -> None:
    clock = Costs({BASELINE: 2e-6, "other": 3e-6})
    comparison = Comparison(PARAMS, torch.float32, clock, [adam("other"), adam(BASELINE)])
    comparison.warm_up(Effort(1.0))
    comparison.round()
    other, baseline = comparison.results(copy_gb_per_s=0.5)
    assert (other.list, other.contestant, other.dtype) == ("two", "other", "float32")
    assert other.step_ms.median == 3e-3
    assert (other.over_adam, baseline.over_adam) == (1.5, 1.0)
    assert (other.state_bytes_per_param, other.bytes_per_param) == (8, 28)
    assert other.GB_per_s == pytest.approx(64 * 28 / 3e-6 / 1e9, rel=1e-5)
    assert other.share_of_copy == pytest.approx(other.GB_per_s / 0.5, rel=1e-5)
    assert other.host_us.median == pytest.approx(0.6)
    assert other.host_us_per_tensor == pytest.approx(0.3)
    assert (other.wall_us, other.kernel_us, other.launches) == (None, None, None)


def test_ratios_are_of_neighbours() -> None:
    class Shared(Costs):
        """A machine that is nine times as slow during a part of every round."""

        def measure(self, work: Work, twin: Work | None, steps: int) -> Samples:
            slow = 9.0 if len(self.asked) % 5 in (1, 2) else 1.0
            samples = super().measure(work, twin, steps)
            return Samples([slow * ms for ms in samples.step_ms], samples.host_us)

    clock = Shared({BASELINE: 2e-3, "a": 3e-3, "b": 8e-3})
    contestants = [adam(name) for name in (BASELINE, "a", "b")]
    comparison = Comparison(PARAMS, torch.float32, clock, contestants)
    comparison.warm_up(Effort(1.0))
    clock.asked.clear()
    for _ in range(3):
        comparison.round()
    assert [name for name, _ in clock.asked] == [BASELINE, BASELINE, "a", BASELINE, "b"] * 3
    found = comparison.results(50.0)
    assert [r.step_ms.median for r in found] == pytest.approx([2, 27, 8])
    assert [r.over_adam for r in found] == pytest.approx([1, 1.5, 4])


def test_without_the_baseline_there_is_no_ratio() -> None:
    comparison = Comparison(PARAMS, torch.bfloat16, Costs({"a": 1e-3}), [adam("a")])
    comparison.warm_up(Effort(1.0))
    comparison.round()
    (result,) = comparison.results(50.0)
    assert result.over_adam is None
    assert (result.state_bytes_per_param, result.bytes_per_param) == (4, 14)


@pytest.mark.parametrize("when", ["made", "warm-up", "third round"])
def test_one_that_fails_is_named_and_the_others_go_on(when: str) -> None:
    steps = itertools.count()

    def fail(params: list[Parameter]) -> torch.optim.Optimizer:
        if when == "made":
            raise OSError("no such\nlibrary")
        last = 0 if when == "warm-up" else 4
        return Optimizer(params, [], lambda: 1 // 0 if next(steps) == last else None)

    bad = Contestant("bad", "torch", fail, lambda *_: None)
    comparison = Comparison(PARAMS, torch.float32, CpuClock(), [bad, adam("good")])
    comparison.warm_up(Effort(seconds=1e-9))
    for _ in range(3):
        comparison.round()
    words = "OSError: no such library" if when == "made" else "ZeroDivisionError: integer"
    assert comparison.failed["bad"].startswith(words)
    assert [r.contestant for r in comparison.results(50.0)] == ["good"]


def test_groups_fit_in_memory_and_hold_the_baseline() -> None:
    big = ParamList("big", ((1000, 1000),), "made up")
    everyone = [adam(name) for name in ("a", BASELINE, "b", "c")]
    # Each has parameter, gradient and three states of 4 MB; values, gradients and temporaries of
    # one that is not fused are 20 MB once. Nine tenths of the free memory may be taken.
    for free, expected in (
        (100e6 / 0.9, [["a", BASELINE, "b", "c"]]),
        (99e6 / 0.9, [[BASELINE, "a", "b"], [BASELINE, "c"]]),
        (60e6 / 0.9 + 1, [[BASELINE, "a"], [BASELINE, "b"], [BASELINE, "c"]]),
    ):
        found = groups(everyone, big, torch.float32, Costs({}, free=int(free) + 1))
        assert [[made.name for made in group] for group in found] == expected
    with pytest.raises(MemoryError, match=r"takes 0\.1 GiB of memory, and 0\.0 GiB are free"):
        groups(everyone, big, torch.float32, Costs({}, free=int(50e6)))
    assert groups([], big, torch.float32, Costs({}, free=0)) == []
    assert groups([adam("a")], big, torch.float32, Costs({}, free=int(50e6)))


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


class Gpu:
    """A GPU on paper: the host queues work, which the device does one after the other."""

    QUEUE = 1000
    CACHE = 50 << 20

    def __init__(self) -> None:
        self.host = 0.0
        self.idle_at = 0.0

    def queue(self, host: float, device: float, launches: int = 1) -> None:
        if launches > self.QUEUE:
            self.host = max(self.host, self.idle_at)
        self.host += host
        self.idle_at = max(self.idle_at, self.host) + device

    def synchronize(self, _: Any) -> None:
        self.host = max(self.host, self.idle_at)

    def _sleep(self, cycles: int) -> None:
        self.queue(0.0, cycles / 2e9)

    def get_device_properties(self, _: Any) -> Any:
        return type("Properties", (), {"L2_cache_size": self.CACHE})

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802 - torch's name
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def record(self) -> None:
        self.at = max(self.gpu.idle_at, self.gpu.host)

    def query(self) -> bool:
        return self.gpu.host >= self.at

    def elapsed_time(self, later: Event) -> float:
        return (later.at - self.at) * 1e3


def on_gpu(
    host: float, device: float, launches: int = 1, copies: int = 3, compiling: float = 0.0
) -> tuple[Work, CudaClock, Gpu]:
    gpu = Gpu()
    first = iter([compiling])
    made = contestant(on_step=lambda: gpu.queue(host + next(first, 0), device, launches))
    return work(made, copies), CudaClock(CPU, gpu, now=lambda: gpu.host), gpu


def test_gpu_time_is_the_devices_alone() -> None:
    made, clock, _ = on_gpu(host=50e-6, device=3e-6, compiling=2.0)
    samples = clock.measure(made, None, 4)
    assert samples.step_ms == pytest.approx([3e-3] * 6)  # whole passes over three sets
    assert samples.host_us == pytest.approx([50.0] * 6)
    assert samples.wall_us == pytest.approx([53.0] * 6)
    assert made.sleep < 10 * FIRST_SLEEP  # the long one was for what was compiled


def test_gpu_sleeps_long_enough_for_a_slow_host() -> None:
    made, clock, _ = on_gpu(host=20e-3, device=1e-3)
    samples = clock.measure(made, None, 3)
    assert samples.step_ms == pytest.approx([1.0] * 3)
    assert made.sleep == pytest.approx(0.12)


def test_gpu_time_without_sleep_holds_the_hosts() -> None:
    for host, launches in ((0.5, 1), (0.02, 2000)):
        made, clock, gpu = on_gpu(host=host, device=1e-3, launches=launches, copies=1)
        samples = clock.measure(made, None, 2)
        assert made.sleep == 0
        assert samples.step_ms == pytest.approx([(host + 1e-3) * 1e3] * 2, rel=0.01)
        assert samples.host_us == pytest.approx([host * 1e6] * 2)
        before = gpu.host
        clock.measure(made, None, 1)
        assert gpu.host - before < LONGEST_SLEEP + 3 * host


def test_gpu_gradients_are_made_before_the_first_step_of_a_pass() -> None:
    made, clock, _ = on_gpu(host=1e-6, device=1e-6)
    order: list[Any] = []
    make_grads, made.make_grads = made.make_grads, lambda t: (order.append(f"g{t}"), make_grads(t))
    step, made.step = made.step, lambda t: (order.append(f"s{t}"), step(t))
    clock.measure(made, None, 1)
    passes = ["g0", "g1", "g2", "s0", "s1", "s2"]
    assert order == passes * 2  # behind the sleep, and from an idle device


@pytest.mark.parametrize(
    ("set_mib", "tensors", "expected"),
    [(4000, 1, 1), (2000, 148, 2), (400, 161, 2), (50, 10, 4), (16, 1, 13), (1e-2, 1, 128)],
)
def test_sets_are_together_larger_than_the_cache(
    set_mib: float, tensors: int, expected: int
) -> None:
    set_bytes = int(set_mib * (1 << 20))
    found = copies(set_bytes, tensors, Gpu.CACHE)
    assert found == expected
    assert found * set_bytes > 2 * Gpu.CACHE or found == 128


def test_sets_of_many_tensors_are_few() -> None:
    assert copies(1 << 20, 1_000, Gpu.CACHE) == 8  # what our engine's ring of uploads holds
    assert copies(10 << 20, 10_000, Gpu.CACHE) == 2
    assert copies(10 << 20, 100_000, Gpu.CACHE) == 1


def test_kernels_are_what_a_profile_calls_so() -> None:
    def event(name: str, device: str = "CUDA", annotation: bool = False) -> Any:
        kind = type("Kind", (), {"name": device})
        fields = {"name": name, "device_type": kind, "is_user_annotation": annotation}
        return type("Event", (), fields)

    events = [
        event("step_kernel<AdaMod>"),
        event("Memcpy HtoD (Pinned -> Device)"),
        event("Memset (Device)"),
        event("Optimizer.step#AdaMod.step", annotation=True),
        event("cudaLaunchKernel", device="CPU"),
    ]
    assert kernels(events) == 1
    assert kernels([*events, events[0]]) == 2
    assert kernels(events[1:]) is None


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_on_a_real_gpu(backend: str) -> None:
    device = torch.device("cuda", 0)
    clock = CudaClock(device)
    params = ParamList("mixed", ((1 << 22,), *((64,),) * 200), "made up")
    made = Work(ours(backend), ValuesAndGrads.make(params.shapes, torch.float32, device), copies=4)
    clock.measure(made, None, 1)
    samples = clock.measure(made, None, 8)
    assert len(samples.step_ms) == len(samples.host_us) == len(samples.wall_us) == 8
    assert 0 < min(samples.step_ms) < 5
    for step_ms, wall_us in zip(samples.step_ms, samples.wall_us, strict=True):
        assert step_ms * 1e3 < wall_us * 2
    assert clock.launches(made) in (1, None)
    assert clock.peak_bytes(made) is not None
    roofline = Roofline(clock, largest=1 << 28)
    roofline.sample()
    assert roofline.copy.median > 100
