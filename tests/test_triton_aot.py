"""The Triton step, compiled ahead of time: what the machine code must and must not hold.

Triton compiles for a target that is not there, so this needs no GPU.
"""

from __future__ import annotations

import itertools
import os
import re

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

from adamod_fused.triton_kernels import engine, ieee  # noqa: E402
from ahead_of_time import global_accesses, known_amd, need_arch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from bench import triton_code  # noqa: E402
from bench.occupancy import NEEDED_IN_FLIGHT  # noqa: E402
from bench.triton_code import ARCHS, DTYPES, compile_kernel  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)

NUM_SCALARS = triton_code.NUM_SCALARS

# Instructions of the vector path per element, the most on any architecture with Triton 3.6 to 3.9,
# and 5 % for another compiler's taste. 16 bits go through shared memory.
MOST_INSTRUCTIONS = {4: 53.1 * 1.05, 2: 58.1 * 1.05}


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(
    scope="module",
    params=list(itertools.product(ARCHS, DTYPES, [False, True])),
    ids=lambda param: f"sm_{param[0]}-{param[1]}{'-controlled' if param[2] else ''}",
)
def cuda_kernel(request, fresh_cache):
    arch, dtype, controlled = request.param
    need_arch(arch)
    kernel = compile_kernel(dtype, GPUTarget("cuda", arch, 32), controlled=controlled)
    return arch, dtype, controlled, kernel


def test_every_stream_is_moved_once_in_128_bits(cuda_kernel):
    """Whole blocks in vectors alone; the masked path, its twin, element by element."""
    _, dtype, controlled, kernel = cuda_kernel
    elements = engine.BLOCK_SIZE // (32 * engine.NUM_WARPS)
    states = [4] * 3
    loaded = elements * sum([dtype.itemsize, dtype.itemsize, *states])
    stored = elements * sum([dtype.itemsize, *states])
    scalars = 2 * (NUM_SCALARS - 1) * 4  # a row in either path; the step is for codes alone
    table = (8 + 1) * 8  # one row, and one column in the search for it
    control = 2 * 4 if controlled else 0

    vectors, singles = global_accesses(kernel.asm["ptx"], "ld")
    assert min(vectors) >= 16
    assert sum(vectors) == loaded
    assert sum(singles) == loaded + scalars + table + control

    vectors, singles = global_accesses(kernel.asm["ptx"], "st")
    assert min(vectors) >= 16
    assert sum(vectors) == stored
    assert sum(singles) == stored
    assert not re.search(r"\b(atom|red|cp)\.", kernel.asm["ptx"])


def test_arithmetic_is_ieee(cuda_kernel):
    _, dtype, _, kernel = cuda_kernel
    ptx = kernel.asm["ptx"]
    assert not re.findall(r"\b(?:fma|mad)\.\S*f\d\d\S*", ptx)
    assert not re.findall(r"\b\w+\.(?:approx|full)\S*", ptx)

    root, quotient = "sqrt.rn.f32", "div.rn.f32"
    if ieee.FLUSHES.value:
        root, quotient = "sqrt.rn.ftz.f32", "div.rn.f64"
    # A root that flushes gets no subnormals: ieee.py.
    assert set(re.findall(r"\b\w\S*\.ftz\S*", ptx)) <= {root}
    per_thread = 2 * engine.BLOCK_SIZE // (32 * engine.NUM_WARPS)  # in either path
    assert len(re.findall(rf"\b{root}\s", ptx)) == per_thread
    assert len(re.findall(rf"\b{quotient}\s", ptx)) == per_thread
    narrow = {torch.bfloat16: r"\bcvt\.rn\.bf16", torch.float16: r"\bcvt\.rn\.f16"}
    assert dtype not in narrow or re.search(narrow[dtype], ptx)


def test_float32_streams_stay_in_registers(cuda_kernel):
    """One layout from load to store: elements are not exchanged through shared memory.

    With 16-bit params Triton itself chooses to: it keeps stores of the 32-bit states coalesced.
    """
    _, dtype, _, kernel = cuda_kernel
    assert dtype != torch.float32 or ".shared" not in kernel.asm["ptx"]


def test_resources(cuda_kernel):
    arch, dtype, _, kernel = cuda_kernel
    found = triton_code.resources(kernel, arch, dtype)
    assert found.spilled == 0
    assert found.bytes_in_flight >= NEEDED_IN_FLIGHT[str(arch)] << 10, found
    if ieee.FLUSHES.value:
        pytest.skip(f"Triton {triton.__version__} divides in float64: not the instructions counted")
    assert found.instructions_per_element <= MOST_INSTRUCTIONS[dtype.itemsize], found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiles_for_amd(dtype):
    with known_amd():
        kernel = compile_kernel(dtype, GPUTarget("hip", "gfx942", 64), controlled=True)
    assert re.findall(r"[sv]gpr_spill_count: +(\d+)", kernel.asm["amdgcn"]) == ["0", "0"]
    assert re.search(r"amdhsa_float_denorm_mode_32 3\b", kernel.asm["amdgcn"])  # subnormals kept
    assert not re.search(r"= f(?:add|sub|mul|div) (?:fast|contract|reassoc)", kernel.asm["llir"])
