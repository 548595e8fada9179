"""How time is taken on a device, and on a CPU in particular; on a GPU: cuda_clock.py.

What all keep to: gradients are made outside the clock, and Python's garbage collector, whose
passes over the objects of all contestants are nobody's own cost, is off while it runs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest.mock import patch

import torch

from adamod_fused.backends.cpu import CpuBackend

from .machine import available_memory
from .work import Work


@dataclass
class Samples:
    """Measurements of one contestant, one number a step; empty where a device has no such."""

    step_ms: list[float] = field(default_factory=list)
    host_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)
    kernel_us: list[float] = field(default_factory=list)
    host_in_step: bool | None = None
    """Of a GPU: whether a step's time holds the host's too, because no sleep held the queue."""

    def extend(self, more: Samples) -> None:
        self.step_ms += more.step_ms
        self.host_us += more.host_us
        self.wall_us += more.wall_us
        self.kernel_us += more.kernel_us
        if more.host_in_step is not None:
            self.host_in_step = bool(self.host_in_step) or more.host_in_step


class Clock(Protocol):
    """A device and how time is taken on it."""

    device: torch.device
    twins: bool
    """Whether host time is that of a twin with tiny tensors: see ``CpuClock``."""

    def copies(self, set_bytes: int, tensors: int) -> int:
        """How many sets of a contestant's tensors take turns."""

    def in_cache(self, set_bytes: int, copies: int) -> bool | None:
        """Whether the sets all fit in a GPU's cache, where steps then find them."""

    def seconds(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        """Of the device for each call."""

    def measure(self, work: Work, twin: Work | None, steps: int) -> Samples:
        """Takes ``steps`` steps or, where sets take turns, a few more."""

    def peak_bytes(self, work: Work) -> int | None:
        """Memory that a step takes besides what is there before it."""

    def launches(self, work: Work) -> int | None:
        """Kernels that a step launches."""

    def free_bytes(self) -> int:
        """Memory of the device that may be taken."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CpuClock:
    """Wall time, since a CPU's step is over when it returns.

    Host time cannot be told from the kernel's where both run on the same cores. So a twin is
    measured too: as many tensors, of 16 elements each, whose step is next to nothing but the
    host's. For our own optimizer the time inside the backend is taken as well.
    """

    twins = True

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.device = torch.device("cpu")
        self._now = now

    def copies(self, set_bytes: int, tensors: int) -> int:
        return 1

    def in_cache(self, set_bytes: int, copies: int) -> bool | None:
        return None

    def seconds(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        def timed(call: Callable[[], object]) -> float:
            start = self._now()
            call()
            return self._now() - start

        with no_garbage_collection():
            return [timed(call) for call in calls]

    def measure(self, work: Work, twin: Work | None, steps: int) -> Samples:
        with self._kernel_seconds() as in_kernel:
            samples = Samples(step_ms=[seconds * 1e3 for seconds in self._steps(work, steps)])
            # Each step makes as many: a list is of one dtype, but small tensors may be in formats
            # of their own.
            calls = len(in_kernel) // (1 + steps)
            if calls:
                of_steps = range(calls, len(in_kernel), calls)  # but for the first
                samples.kernel_us = [sum(in_kernel[i : i + calls]) * 1e6 for i in of_steps]
        if twin is not None:
            samples.host_us = [seconds * 1e6 for seconds in self._steps(twin, steps)]
        return samples

    def _steps(self, work: Work, steps: int) -> Iterator[float]:
        """Seconds of each; one goes before and does not count.

        It finds the caches, and those of the page tables, full of another contestant's.
        """
        for turn in range(1 + steps):
            work.make_grads()
            seconds = self.seconds([work.step])
            if turn > 0:
                yield from seconds
        work.drop_grads()

    @contextmanager
    def _kernel_seconds(self) -> Iterator[list[float]]:
        """The seconds of each call of our CPU backend from here on."""
        seconds: list[float] = []
        launcher = CpuBackend.launcher

        def timed(*arguments: Any) -> Callable[[], None]:
            launch = launcher(*arguments)

            def timed_launch() -> None:
                start = self._now()
                launch()
                seconds.append(self._now() - start)

            return timed_launch

        with patch.object(CpuBackend, "launcher", timed):
            yield seconds

    def peak_bytes(self, work: Work) -> int | None:
        return None  # torch does not count a CPU's memory, and a process's peak is not a step's

    def launches(self, work: Work) -> int | None:
        return None

    def free_bytes(self) -> int:
        return available_memory()
