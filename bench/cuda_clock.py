"""How time is taken on a GPU: by events around each step, all queued behind a sleep.

While the device sleeps the host queues every step, so that the time between two events is the
device's alone. Several sets of tensors, together larger than the L2 cache, take turns: no step
finds in the cache what it needs, as in training, where a forward and a backward pass lie between.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from .clocks import Samples, no_garbage_collection
from .work import FIRST_SLEEP, Work

CYCLES_PER_SECOND = 2e9  # about what GPUs run at; a slower one sleeps longer, which does no harm
LONGEST_SLEEP = 0.25  # seconds
SHORT_SLEEP = 5e-3  # for calls that are one launch each
NO_SLEEP = 0.0

MOST_SETS = 128
# Our engine's, since no pass may wait for the device; test_cuda_tables.py holds both to it.
LONG_TABLE = 485  # rows; more of them are uploaded (csrc/engine/cuda_upload.h), ...
MOST_UPLOADS = 8  # ... which waits where so many steps are queued already
MOST_TENSORS = 20_000  # in all sets: more take long to make, and their time is the host's anyway


class Pass(NamedTuple):
    """Seconds of each call, of queueing all, and whether the device slept all that time."""

    device: list[float]
    host: list[float]
    queueing: float
    held: bool


def copies(set_bytes: int, tensors: int, cache_bytes: int) -> int:
    """How many sets of a contestant's tensors take turns.

    Together they are four times the cache, so that even the gradients, a quarter of a set or
    less and all made before the first step, push the first ones out of it. One set is enough where
    the cache could hold only a sixty-fourth of it.
    """
    if set_bytes >= 64 * cache_bytes:
        return 1
    wanted = max(2, -(-4 * cache_bytes // set_bytes))
    most = MOST_SETS if tensors <= LONG_TABLE else MOST_UPLOADS
    return max(1, min(wanted, most, MOST_TENSORS // tensors))


class CudaClock:
    """Events for the device's time; the host's and both together are taken apart.

    Host time is taken while the device sleeps. Where one step is more launches than the queue
    holds, about a thousand, the host has to wait for the device whatever the sleep. Then there is
    none: the device's time contains the host's, because the device waits for it, and the host's is
    that of a step that begins on an idle device.
    """

    twins = False

    def __init__(
        self,
        device: torch.device,
        cuda: Any = torch.cuda,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = device
        self._cuda = cuda
        self._now = now
        self._cache_bytes: int = cuda.get_device_properties(device).L2_cache_size

    def copies(self, set_bytes: int, tensors: int) -> int:
        return copies(set_bytes, tensors, self._cache_bytes)

    def in_cache(self, set_bytes: int, copies: int) -> bool | None:
        return set_bytes * copies <= self._cache_bytes

    def seconds(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        return self._behind_sleep(calls, SHORT_SLEEP).device

    def measure(self, work: Work, twin: Work | None, steps: int) -> Samples:
        samples, held = Samples(), True
        for _ in range(-(-steps // work.copies)):
            queued = self._pass(work)
            samples.step_ms += [seconds * 1e3 for seconds in queued.device]
            held &= queued.held
            host, wall = self._from_idle(work)
            samples.host_us += [seconds * 1e6 for seconds in (queued.host if queued.held else host)]
            samples.wall_us += [seconds * 1e6 for seconds in wall]
        work.drop_grads()
        samples.host_in_step = not held
        return samples

    def _pass(self, work: Work) -> Pass:
        """One step of every set, behind a sleep that is just long enough, if any is."""
        while True:
            found = self._behind_sleep(self._prepare(work), work.sleep)
            if found.held:
                work.sleep = min(max(2 * found.queueing, FIRST_SLEEP), LONGEST_SLEEP)
            if found.held or work.sleep == NO_SLEEP:
                return found
            # Thrown away, since these times hold a part of the host's. The first step of all, in
            # which states are made and kernels compiled, always comes here.
            longer = min(2 * max(found.queueing, work.sleep), LONGEST_SLEEP)
            work.sleep = longer if longer > work.sleep else NO_SLEEP

    def _prepare(self, work: Work) -> list[Callable[[], None]]:
        for turn in range(work.copies):
            work.make_grads(turn)
        return [partial(work.step, turn) for turn in range(work.copies)]

    def _behind_sleep(self, calls: Sequence[Callable[[], object]], sleep: float) -> Pass:
        events = [self._cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        host = []
        self._cuda.synchronize(self.device)
        self._cuda._sleep(int(sleep * CYCLES_PER_SECOND))
        events[0].record()
        begin = self._now()
        with no_garbage_collection():
            for call, event in zip(calls, events[1:], strict=True):
                start = self._now()
                call()
                host.append(self._now() - start)
                event.record()
        queueing = self._now() - begin
        held = not events[0].query()
        self._cuda.synchronize(self.device)
        device = [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
        return Pass(device, host, queueing, held)

    def _from_idle(self, work: Work) -> tuple[list[float], list[float]]:
        """Seconds until each step returns, and until its work is done, the device being idle."""
        host, wall = [], []
        for call in self._prepare(work):
            self._cuda.synchronize(self.device)
            with no_garbage_collection():
                start = self._now()
                call()
                host.append(self._now() - start)
                self._cuda.synchronize(self.device)
                wall.append(self._now() - start)
        return host, wall

    def peak_bytes(self, work: Work) -> int | None:
        work.make_grads()
        self._cuda.synchronize(self.device)
        self._cuda.reset_peak_memory_stats(self.device)
        before: int = self._cuda.memory_allocated(self.device)
        work.step()
        self._cuda.synchronize(self.device)
        most: int = self._cuda.max_memory_allocated(self.device)
        work.drop_grads()
        return most - before

    def launches(self, work: Work) -> int | None:
        work.make_grads()
        self._cuda.synchronize(self.device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            work.step()
            self._cuda.synchronize(self.device)
        work.drop_grads()
        return kernels(profiled.events() or ())

    def free_bytes(self) -> int:
        gc.collect()
        self._cuda.empty_cache()
        free: int = self._cuda.mem_get_info(self.device)[0]
        return free


def kernels(events: Iterable[Any]) -> int | None:
    """How many of a profile's events are kernels; None for none: the profiler saw no device.

    Copies and fills are no kernels, and torch marks the span of an optimizer's step on the
    device too.
    """
    found = [
        event
        for event in events
        if event.device_type.name == "CUDA"
        and not event.is_user_annotation
        and not event.name.startswith(("Memcpy", "Memset"))
    ]
    return len(found) or None
