"""How the benchmark takes time on a GPU: on one that is made of paper, and on a real one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_work import CPU, contestant, work

from bench.contestants import ours
from bench.cuda_clock import LONGEST_SLEEP, CudaClock, copies, kernels
from bench.lists import ParamList
from bench.roofline import Roofline
from bench.work import FIRST_SLEEP, ValuesAndGrads, Work


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
    assert samples.host_in_step is False
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
        assert samples.host_in_step
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
    clock = CudaClock(CPU, Gpu())
    assert clock.in_cache(set_bytes, found) == (found == 128)
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
