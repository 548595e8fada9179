"""Triton kernels compiled ahead of time for GPUs that are not there, and what PTX holds."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import pytest

from bench.machine_code import output
from bench.triton_code import CUOBJDUMP


@functools.cache
def known_archs() -> str:
    """What those of Triton's own assemblers say that they compile for."""
    return "".join(output(path, "--help") for path in CUOBJDUMP.parent.glob("ptxas*"))


def need_arch(arch: int) -> None:
    """Skips where Triton is older than the architecture: its LLVM may then end the process."""
    if f"'sm_{arch}'" not in known_archs():
        pytest.skip(f"the ptxas of Triton {version('triton')} does not know sm_{arch}")


@contextmanager
def known_amd() -> Iterator[None]:
    """Skips where Triton cannot link for AMD."""
    try:
        yield
    except Exception as error:  # the very class that Triton 3.2 raises: there is none narrower
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
