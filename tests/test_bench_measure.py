"""What the benchmark makes of its samples: contestants side by side, ratios, groups."""

from __future__ import annotations

import itertools

import pytest
import torch
from bench_work import CPU, PARAMS, Optimizer
from torch.nn import Parameter

from bench.clocks import CpuClock, Samples
from bench.contestants import BASELINE, Contestant
from bench.lists import ParamList
from bench.measure import Comparison, Effort, groups
from bench.work import Work


class Costs:
    """A CPU clock for contestants whose steps take a known time, and who are asked in turn."""

    device, twins = CPU, True

    def __init__(self, seconds: dict[str, float], free: int = 1 << 40) -> None:
        self.seconds_of, self.free, self.asked = seconds, free, []

    def copies(self, set_bytes: int, tensors: int) -> int:
        return 1

    def in_cache(self, set_bytes: int, copies: int) -> bool | None:
        return (set_bytes, copies) == (64 * (4 + 4 + 8), 1)

    def measure(self, work: Work, twin: Work | None, steps: int) -> Samples:
        work.make_grads()
        with_optimizer = self.seconds_of[work.contestant.name]
        self.asked.append((work.contestant.name, steps))
        work.step()
        times = [with_optimizer * 1e3] * steps, [with_optimizer * 2e5] * steps
        return Samples(*times, host_in_step=len(self.asked) == 6)

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
    for _ in range(2):  # in the first the other's block that holds host time, the sixth of all
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
    assert (other.in_cache, other.host_in_step, baseline.host_in_step) == (True, True, False)


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
