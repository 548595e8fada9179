"""Fuzzers of whole optimizers; how long they run: budget.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # helpers.py and its like


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are small: what is one element to several threads test_threads.py knows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
