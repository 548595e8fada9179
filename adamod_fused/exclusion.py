"""One call at a time on the tensors of an optimizer: a second one raises, it does not wait.

To wait would be wrong: the second call may come from the first one's own thread, from code that
reading a gradient runs, and a step that waits for another would repeat it with the same gradients.
"""

from __future__ import annotations

import weakref

from . import forks


class _Hold:
    """Holds an optimizer as long as it lives, which is to the end of its ``with`` block.

    No code of ours lets go of it, so an interrupt cannot come in between.
    """

    __slots__ = ("__weakref__", "call")

    def __init__(self, call: str) -> None:
        self.call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Exclusion:
    """``with exclusion.of("step()"):`` holds the optimizer for one call."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._process = forks.process
        self._holds: list[weakref.ref[_Hold]] = []

    def of(self, call: str) -> _Hold:
        """Holds the optimizer from here on, to the end of the ``with`` block.

        Raises:
            RuntimeError: another call holds it.
        """
        if self._process is not forks.process:
            self._renew()  # a forked child inherits what is held and not the thread that holds it
        holds = self._holds
        hold = _Hold(call)
        try:
            # Each operation on the list is one of Python's own, which no other thread interrupts.
            mine = weakref.ref(hold, holds.remove)
            holds.append(mine)
            first = holds[0]
            if first is mine:
                return hold
            holder = first()
        except BaseException:
            mine = hold = None  # type: ignore[assignment]  # the traceback would keep them alive
            raise
        mine = hold = None  # type: ignore[assignment]
        raise RuntimeError(
            f"{call} was called while {'another call' if holder is None else holder.call} of this "
            "optimizer was running, by another thread or by code that reading a gradient runs; let "
            "one call end before the next begins"
        )
