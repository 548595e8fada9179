"""Signals whose handlers wait until a step is over: Ctrl-C must not end a step half-way.

Python runs signal handlers in the main thread, between any two instructions of Python code. A
handler that raises, as that of Ctrl-C does, would leave parameters stepped and their counts not.
Launches that run no Python code need none of this.
"""

from __future__ import annotations

import _signal  # its `signal` is no Python code, in which a handler could run
import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

_NAMES = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "CHLD", "XCPU", "VTALRM", "PROF")
_SIGNALS = [getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}")]


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Has Python's handlers of signals run at the end of the block, in the order of arrival.

    In other threads than the main one, which no signal interrupts, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, Any]] = []

    def note(number: int, frame: Any) -> None:
        arrived.append((number, frame))

    handlers = {n: handler for n in _SIGNALS if callable(handler := _signal.getsignal(n))}
    try:
        deque(map(_signal.signal, handlers, repeat(note)), maxlen=0)
        yield
    finally:
        try:
            deque(map(_signal.signal, handlers, handlers.values()), maxlen=0)
        except BaseException:  # a handler that is back already; the others are to be, too
            deque(map(_signal.signal, handlers, handlers.values()), maxlen=0)
            raise
        finally:
            _run(handlers, arrived)


def _run(handlers: dict[int, Any], arrived: Sequence[tuple[int, Any]]) -> None:
    """Runs the handlers of signals that have arrived, the rest also where one raises."""
    if arrived:
        number, frame = arrived[0]
        try:
            handlers[number](number, frame)
        finally:
            _run(handlers, arrived[1:])
