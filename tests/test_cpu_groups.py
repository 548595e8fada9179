"""The CPU engine's groups of blocks serve ordinary training.

A group that is refused is stepped one element after the other, with the same bits, so no test of
bits would notice if all were.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from adamod_fused import _C as core

pytestmark = pytest.mark.build

SOURCE = Path(__file__).parent / "native" / "groups_main.cpp"
FLAGS = ["-std=c++17", "-O2", "-fopenmp-simd", "-ffp-contract=off", "-Wall", "-Wextra"]
GROUPS, STEPS = 8, 100


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("groups") / "groups"
    subprocess.run(["g++", *FLAGS, "-Werror", str(SOURCE), "-o", str(built)], check=True)
    return built


def _served(program: Path, *arguments: object) -> list[int]:
    command = [program, *map(str, arguments)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(line) for line in told.splitlines()]


@pytest.mark.parametrize("num_bytes", [1, 2])
@pytest.mark.parametrize("isa", [isa for isa in core.cpu_instruction_sets() if isa != "avx2"])
def test_serve_all_that_is_finite(program: Path, isa: str, num_bytes: int) -> None:
    assert _served(program, isa, num_bytes, STEPS, -1) == [GROUPS] * STEPS
    spoilt = _served(program, isa, num_bytes, STEPS, 700)
    assert spoilt == [GROUPS] * (STEPS - 1) + [GROUPS - 1]
