"""One call at a time on the tensors of an optimizer: a second one raises, it does not wait.

To wait would be wrong: the second call may come from the first one's own thread, from code that
reading a gradient runs, and a step that waits for another would repeat it with the same gradients.
"""

from __future__ import annotations

import threading
from types import TracebackType

from . import forks


class Exclusion:
    """``with exclusion.of("step()"):`` holds the optimizer for one call."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._process = forks.process
        self._lock = threading.Lock()
        self._holder = ""

    def of(self, call: str) -> Exclusion:
        """Holds the optimizer from here on, to the end of the ``with`` block.

        Raises:
            RuntimeError: another call holds it.
        """
        if self._process is not forks.process:
            self._renew()  # a forked child inherits a held lock and not the thread that holds it
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                f"{call} was called while {self._holder} of this optimizer was running, by another "
                "thread or by code that reading a gradient runs; let one call end before the next "
                "begins"
            )
        self._holder = call
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
