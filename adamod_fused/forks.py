"""Which process this is, told apart from the parent that it was forked from.

Not by its number: a child in a new PID namespace may have its parent's.
"""

from __future__ import annotations

import os

process = object()
"""Another object in a forked child."""


def _renew() -> None:
    global process
    process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
