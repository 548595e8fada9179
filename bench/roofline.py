"""How fast the device's memory is: a copy, and a pass in place, bytes read plus bytes written."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .clocks import Clock
from .record import Spread

REPEATS = 6
LARGEST = {"cpu": 256 << 20, "cuda": 4 << 30}  # bytes, many times any cache
LEAST_FREE = 8  # buffers of it that must fit in the free memory


class Roofline:
    """GB/s of a copy, ``y = x``, and of a pass in place, ``x = 1 * x``.

    A GPU does both at about the same speed. On a CPU the copy is slower: before it writes a line
    of memory that is not in the cache it has to read it, and nobody counts those bytes. An
    optimizer writes what it has just read, as the pass in place does.

    Sampled again and again during a run, in new buffers: the speed of a shared machine changes
    with the hour, and that of a virtual one with the pages that a buffer gets.
    """

    def __init__(self, clock: Clock, largest: int | None = None) -> None:
        self._clock = clock
        self._largest = largest or LARGEST[clock.device.type]
        self._copy: list[float] = []
        self._in_place: list[float] = []

    def sample(self) -> None:
        """Measures both once more."""
        size = min(self._largest, self._clock.free_bytes() // LEAST_FREE)
        source = torch.ones(size // torch.float32.itemsize, device=self._clock.device)
        target = torch.zeros_like(source)
        self._copy += self._gb_per_s(lambda: target.copy_(source), 2 * source.nbytes)
        self._in_place += self._gb_per_s(lambda: target.mul_(1.0), 2 * target.nbytes)

    def _gb_per_s(self, call: Callable[[], object], moved: int) -> list[float]:
        call()  # warm-up
        return [moved / seconds / 1e9 for seconds in self._clock.seconds([call] * REPEATS)]

    @property
    def copy(self) -> Spread | None:
        """None before the first sample."""
        return Spread.of(self._copy) if self._copy else None

    @property
    def in_place(self) -> Spread | None:
        return Spread.of(self._in_place) if self._in_place else None
