"""The Triton step on coded states and weights, compiled ahead of time: what its code must hold."""

from __future__ import annotations

import itertools
import os
import re

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

from adamod_fused.triton_kernels import coded, ieee  # noqa: E402
from ahead_of_time import global_accesses, known_amd, need_arch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from adamod_fused.formats import Formats  # noqa: E402
from bench import triton_code  # noqa: E402
from bench.triton_code import ARCHS, CODED, bytes_of, compile_kernel  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)

# Per element, the most on any architecture as counted with Triton 3.7, and 5 % for another
# compiler's taste: with codes, without. Two are the sum of weight decay and update and its choice.
MOST_INSTRUCTIONS = {True: 160 * 1.05, False: 82 * 1.05}
# In the vector path of a block of 1,024 or 2,048 elements: around changes of layout, for stores of
# the wider streams and of the exponents.
MOST_BARRIERS = 16


def label(param):
    arch, (dtype, formats) = param
    return f"sm_{arch}-{dtype}-{formats.state}-{formats.weight}"


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module", params=list(itertools.product(ARCHS, CODED)), ids=label)
def cuda_kernel(request, fresh_cache):
    arch, (dtype, formats) = request.param
    need_arch(arch)
    return arch, dtype, formats, compile_kernel(dtype, GPUTarget("cuda", arch, 32), formats=formats)


def elements_of(dtype: torch.dtype, formats: Formats) -> int:
    """Of a thread, in the vector path."""
    return coded.block_size(dtype, formats.state) // (32 * coded.NUM_WARPS)


def test_every_stream_is_moved_once_in_128_bits(cuda_kernel):
    """Whole blocks in vectors alone; the masked path, its twin, element by element."""
    _, dtype, formats, kernel = cuda_kernel
    stored = sum(bytes_of(dtype, formats))
    loaded = stored + dtype.itemsize  # gradients
    masked = coded.MASKED_BLOCK_SIZE // (32 * coded.NUM_WARPS)

    vectors, singles = global_accesses(kernel.asm["ptx"], "ld")
    assert set(vectors) == {16}
    assert sum(vectors) == elements_of(dtype, formats) * loaded
    assert masked * loaded <= sum(singles)

    vectors, singles = global_accesses(kernel.asm["ptx"], "st")
    assert set(vectors) == {16}
    assert sum(vectors) == elements_of(dtype, formats) * stored
    # In either path an exponent of each state, one byte.
    exponents = 0 if formats.state == "fp32" else 2 * 3
    assert sum(singles) == masked * stored + exponents
    assert not re.search(r"\b(atom|red|cp)\.", kernel.asm["ptx"])


def test_arithmetic_is_ieee(cuda_kernel):
    ptx = cuda_kernel[-1].asm["ptx"]
    assert not re.findall(r"\b(?:fma|mad)\.\S*f\d\d\S*", ptx)
    assert not re.findall(r"\b\w+\.(?:approx|full)\S*", ptx)
    # A root that flushes gets no subnormals: ieee.py.
    flushing = {"sqrt.rn.ftz.f32"} if ieee.FLUSHES.value else set()
    assert set(re.findall(r"\b\w\S*\.ftz\S*", ptx)) <= flushing


def test_resources(cuda_kernel):
    arch, dtype, formats, kernel = cuda_kernel
    found = triton_code.resources(kernel, arch, dtype, formats)
    assert found.spilled == 0
    if ieee.FLUSHES.value:
        pytest.skip(f"Triton {triton.__version__} divides in float64: not the instructions counted")
    assert found.instructions_per_element <= MOST_INSTRUCTIONS[formats.codes_states], found


def test_few_barriers(cuda_kernel):
    """Of vector and masked path together."""
    assert (
        len(re.findall(r"\bbar(?:rier)?\.sync\b", cuda_kernel[-1].asm["ptx"])) <= 2 * MOST_BARRIERS
    )


@pytest.mark.parametrize(("dtype", "formats"), CODED, ids=str)
def test_compiles_for_amd(dtype, formats):
    with known_amd():
        kernel = compile_kernel(dtype, GPUTarget("hip", "gfx942", 64), formats=formats)
    assert re.search(r"amdhsa_float_denorm_mode_32 3\b", kernel.asm["amdgcn"])  # subnormals kept
    assert not re.search(r"= f(?:add|sub|mul|div) (?:fast|contract|reassoc)", kernel.asm["llir"])
