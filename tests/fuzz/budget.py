"""How long the fuzzers run: the same few seconds in every test run, or ``FUZZ_SECONDS`` each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""0: the same examples for whoever runs them. Else: new ones, until that time is over."""


def budget(max_examples: int, stateful_step_count: int = 50) -> settings:
    """Settings of a fuzzer that takes some seconds for ``max_examples``."""
    return settings(
        max_examples=max_examples,
        stateful_step_count=stateful_step_count,
        derandomize=not SECONDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def check_clear(error: Exception) -> None:
    """An error that was raised by intent has a message of some words."""
    assert not isinstance(error, RecursionError)
    assert len(str(error)) > 15, repr(error)


def spend(run: Callable[[], None]) -> None:
    """Runs a fuzzer once, and again while there is time."""
    end = time.monotonic() + SECONDS
    run()
    while time.monotonic() < end:
        run()
