"""The Triton kernels that compute in float64, compiled ahead of time: one rounding, one order."""

from __future__ import annotations

import importlib
import itertools
import os
import re

import pytest

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")

from adamod_fused.triton_kernels import table  # noqa: E402
from ahead_of_time import global_accesses, known_amd, need_arch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from bench.triton_code import NUM_SCALARS, compile_ahead  # noqa: E402

# By name: the package's functions of the same names are not meant.
prepare = importlib.import_module("adamod_fused.triton_kernels.prepare")
sum_squares = importlib.import_module("adamod_fused.triton_kernels.sum_squares")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)

ARCHS = (75, 80, 90, 100, 120)
AMD = GPUTarget("hip", "gfx942", 64)
HALVINGS = [f"2x{2**k}" for k in range(9, -1, -1)]  # of 1024 lanes


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compile_prepare(target, controlled):
    signature = {"counts": "*i64", "groups": "*i64", "scalars": "*fp32", "num_rows": "i32"}
    constants = prepare.constants("adamod", NUM_SCALARS)
    if controlled:
        signature["control"] = "*fp32"
    else:
        constants["control"] = None
    return compile_ahead(prepare.prepare_rows, signature, constants, prepare.OPTIONS, target)


def compile_segment(target, dtype):
    signature = {"rows": "*i64", "num_rows": "i32", "partials": "*fp64"}
    constants = {"DTYPE": table.DTYPES[dtype]}
    options = sum_squares.OPTIONS
    return compile_ahead(sum_squares.sum_segment, signature, constants, options, target)


def compile_partials(target):
    signature = {"partials": "*fp64", "num_segments": "i32", "out": "*fp64"}
    return compile_ahead(sum_squares.sum_partials, signature, {}, sum_squares.OPTIONS, target)


def count(instruction: str, ptx: str) -> int:
    return len(re.findall(rf"^\s*(?:@\S+ )?{re.escape(instruction)}\s", ptx, re.MULTILINE))


def assert_ieee(ptx: str) -> None:
    assert not re.findall(r"\b\w+\.(?:approx|full)\S*", ptx)
    assert not re.findall(r"\b\w\S*\.ftz\S*", ptx)
    assert not re.findall(r"\b(?:fma|mad)\.\S*f(?:16|32)\S*", ptx)


def added_in_pairs(kernel) -> list[str]:
    """The shape of each reduction, along its first dimension."""
    ir = kernel.asm["ttir"]
    shapes = re.findall(r"^ *\}\) : \(tensor<(\w+)xf64>\) -> ", ir, re.MULTILINE)
    assert len(shapes) == ir.count('"tt.reduce"') == ir.count("<{axis = 0 : i32}>")
    assert "allow_reorder" not in ir + kernel.asm["ttgir"]
    return shapes


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_prepare(arch, controlled):
    need_arch(arch)
    ptx = compile_prepare(GPUTarget("cuda", arch, 32), controlled).asm["ptx"]
    assert_ieee(ptx)
    assert count("fma.rn.f64", ptx) == 0
    assert count("sqrt.rn.f64", ptx) == 1
    assert count("div.rn.f64", ptx) == 3
    assert count("cvt.rn.f32.f64", ptx) == NUM_SCALARS - 2  # all but the sign and the step
    assert count("cvt.rzi.s64.f32", ptx) == 1
    assert ".shared" not in ptx  # one warp, a row a lane
    assert sum(global_accesses(ptx, "st")[1]) == 4 * (NUM_SCALARS + 1)


@pytest.mark.parametrize(("arch", "dtype"), list(itertools.product(ARCHS, table.DTYPES)), ids=str)
def test_sum_of_a_segment(arch, dtype):
    need_arch(arch)
    try:
        kernel = compile_segment(GPUTarget("cuda", arch, 32), dtype)
    except RuntimeError as error:
        if "Feature '.bf16' requires .target sm_80" not in str(error):
            raise
        pytest.skip(f"Triton {triton.__version__} has no bfloat16 before sm_80")
    ptx = kernel.asm["ptx"]
    assert_ieee(ptx)
    assert added_in_pairs(kernel) == 2 * HALVINGS  # of whole segments, and of others

    per_thread = sum_squares.SEGMENT_SIZE.value // (32 * sum_squares.OPTIONS["num_warps"])
    vectors, singles = global_accesses(ptx, "ld")
    assert min(vectors) == max(vectors) == 16
    assert sum(vectors) == per_thread * dtype.itemsize
    search = (3 + 1) * 8  # one row, and one column in the search for it
    assert sum(singles) == per_thread * dtype.itemsize + search
    assert count("fma.rn.f64", ptx) == 2 * per_thread
    assert count("mul.rn.f64", ptx) == 0
    assert global_accesses(ptx, "st") == ([], [8, 8])
    assert not re.search(r"\b(atom|red)\.", ptx)


@pytest.mark.parametrize("arch", ARCHS)
def test_sum_of_the_segments(arch):
    need_arch(arch)
    kernel = compile_partials(GPUTarget("cuda", arch, 32))
    ptx = kernel.asm["ptx"]
    assert_ieee(ptx)
    assert added_in_pairs(kernel) == HALVINGS
    assert count("fma.rn.f64", ptx) == 0
    assert global_accesses(ptx, "st") == ([], [8])
    assert not re.search(r"\b(atom|red)\.", ptx)


def test_compiles_for_amd():
    with known_amd():
        kernels = [
            compile_prepare(AMD, controlled=True),
            compile_partials(AMD),
            *(compile_segment(AMD, dtype) for dtype in table.DTYPES),
        ]
    for kernel in kernels:
        code = kernel.asm["amdgcn"]
        assert re.findall(r"[sv]gpr_spill_count: +(\d+)", code) == ["0", "0"]
        assert not re.search(r"= f\w+ (?:fast|contract|reassoc)", kernel.asm["llir"])
