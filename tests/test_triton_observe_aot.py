"""The Triton look at a step, compiled ahead of time: what its code must hold."""

from __future__ import annotations

import itertools
import os
import re

import pytest
import torch

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

from adamod_fused.triton_kernels import ieee, observe  # noqa: E402
from ahead_of_time import known_amd, need_arch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from bench.machine_code import output  # noqa: E402
from bench.triton_code import ARCHS, CUOBJDUMP, NUM_SCALARS, compile_ahead  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)

# Every dtype and every width of states; whether there is control.
KINDS = (
    (torch.float32, "fp32", False),
    (torch.float32, "8bit", True),
    (torch.bfloat16, "16bit", False),
    (torch.float16, "fp32", True),
)


def compile_observe(dtype: torch.dtype, state_format: str, controlled: bool, target: GPUTarget):
    signature = {
        "rows": "*i64",
        "coded": "*i64",
        "scalars": "*fp32",
        "num_rows": "i32",
        "control": "*fp32",
        "observed": "*i64",
    }
    constants = observe.constants("adamod", dtype, state_format, NUM_SCALARS)
    for name, is_there in (("coded", state_format != "fp32"), ("control", controlled)):
        if not is_there:
            del signature[name]
            constants[name] = None
    return compile_ahead(observe.observe_segment, signature, constants, observe.OPTIONS, target)


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module", params=list(itertools.product(ARCHS, KINDS)), ids=str)
def cuda_kernel(request, fresh_cache):
    arch, kind = request.param
    need_arch(arch)
    return compile_observe(*kind, GPUTarget("cuda", arch, 32))


def test_arithmetic_is_ieee(cuda_kernel):
    """Fused only where a product is exact: the square of a float32, in float64."""
    ptx = cuda_kernel.asm["ptx"]
    assert not re.findall(r"\b(?:fma|mad)\.\S*f32", ptx)
    assert not re.findall(r"\b\w+\.(?:approx|full)\S*", ptx)
    flushing = {"sqrt.rn.ftz.f32"} if ieee.FLUSHES.value else set()
    assert set(re.findall(r"\b\w\S*\.ftz\S*", ptx)) <= flushing
    assert re.search(r"\badd\.(rn\.)?f64", ptx)


def test_no_spill(cuda_kernel, tmp_path):
    (tmp_path / "kernel.cubin").write_bytes(cuda_kernel.asm["cubin"])
    used = output(CUOBJDUMP, "--dump-resource-usage", tmp_path / "kernel.cubin")
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used))
    assert (int(numbers["STACK"]), int(numbers["LOCAL"])) == (0, 0), used


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compiles_for_amd(kind):
    with known_amd():
        kernel = compile_observe(*kind, GPUTarget("hip", "gfx942", 64))
    assert re.search(r"amdhsa_float_denorm_mode_32 3\b", kernel.asm["amdgcn"])  # subnormals kept
