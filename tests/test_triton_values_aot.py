"""The Triton conversions of states, compiled ahead of time: what their code must hold."""

from __future__ import annotations

import os
import re

import pytest

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

from adamod_fused.triton_kernels import values  # noqa: E402
from ahead_of_time import known_amd, need_arch  # noqa: E402
from coded_values import KINDS, KINDS_OF_RULES  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from bench.machine_code import output  # noqa: E402
from bench.triton_code import ARCHS, CUOBJDUMP, compile_ahead  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)

# Kernel, kinds of the states, bytes of a code, dtype of the values.
KERNELS = (
    ("decode_block", KINDS, 1, "u16"),
    ("decode_block", KINDS, 2, "fp32"),
    ("encode_block", KINDS, 1, "u16"),
    ("encode_block", KINDS, 1, "fp32"),
    ("encode_block", KINDS_OF_RULES[1], 2, "fp32"),
)


def compile_kernel(name, kinds, num_bytes, dtype, target):
    signature = {
        **{f"state{k}_ptr": "*u8" if num_bytes == 1 else "*u16" for k in range(3)},
        "exponents_ptr": "*u8",
        **{f"value{k}_ptr": f"*{dtype}" for k in range(3)},
        "numel": "i64",
    }
    constants = values.constants([kind.value for kind in kinds], num_bytes)
    return compile_ahead(getattr(values, name), signature, constants, values.OPTIONS, target)


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_no_spill_and_no_approximation(arch, kernel, tmp_path):
    need_arch(arch)
    compiled = compile_kernel(*kernel, GPUTarget("cuda", arch, 32))
    assert not re.findall(r"\b\w+\.(?:approx|full|ftz)\S*", compiled.asm["ptx"])
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    used = output(CUOBJDUMP, "--dump-resource-usage", tmp_path / "kernel.cubin")
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used))
    assert (int(numbers["STACK"]), int(numbers["LOCAL"])) == (0, 0), used


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_compiles_for_amd(kernel):
    with known_amd():
        compiled = compile_kernel(*kernel, GPUTarget("hip", "gfx942", 64))
    assert re.search(r"amdhsa_float_denorm_mode_32 3\b", compiled.asm["amdgcn"])  # subnormals kept
