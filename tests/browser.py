"""A headless Chromium for tests that look at pages; ``make browser`` installs one."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing() -> str | None:
    """Why there is no browser here and what to do, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "no playwright here: pip install 'adamod_fused[dev]'"
    if executable() is None:
        return f"none of {', '.join(NAMES)} is on PATH: make browser"
    return None


def executable() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """playwright's Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable())
        yield browser
        browser.close()
