"""Triton kernels compiled ahead of time for GPUs that are not there, and what PTX holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import pytest


@contextmanager
def known_arch(arch: int) -> Iterator[None]:
    """Skips where Triton's own ptxas is older than the architecture."""
    try:
        yield
    except RuntimeError as error:
        if "is not defined for option 'gpu-name'" not in str(error):
            raise
        pytest.skip(f"the ptxas of Triton {version('triton')} does not know sm_{arch}")


@contextmanager
def known_amd() -> Iterator[None]:
    """Skips where Triton cannot link for AMD."""
    try:
        yield
    except Exception as error:
        if "ld.lld not found" not in str(error):
            raise
        pytest.skip(f"Triton {version('triton')} carries no linker for AMD: {error}")


def global_accesses(ptx: str, operation: str) -> tuple[list[int], list[int]]:
    """The bytes of each vector and of each single-element access of global memory."""
    vectors, singles = [], []
    for qualifiers in re.findall(rf"\b{operation}\.global((?:\.\w+(?:::\w+)*)+)", ptx):
        width = int(re.search(r"\.[bfus](\d+)$", qualifiers)[1]) // 8
        length = re.search(r"\.v(\d)\.", qualifiers)
        (vectors if length else singles).append(width * int(length[1]) if length else width)
    return vectors, singles
