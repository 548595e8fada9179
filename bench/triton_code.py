"""What Triton and ptxas make of the Triton kernel, compiled ahead of time: no GPU needed.

``python -m bench.triton_code`` prints what each kernel takes, as ``bench.kernels`` does.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from adamod_fused.triton_kernels import coded, engine
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adamod_fused.formats import PLAIN, STATE_FORMATS, Formats
from adamod_fused.reference import AdaMod

from .kernels import Resources
from .machine_code import Instruction, accesses, instructions, output
from .occupancy import WARP, resident_blocks

ARCHS = (80, 90, 100)
DTYPES = tuple(engine.DTYPES)
NUM_SCALARS = len(AdaMod.Scalars._fields)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# What shows every path and width; the other formats are mixtures of these.
CODED = (
    (torch.float32, Formats("8bit", "plain")),
    (torch.float32, Formats("16bit", "plain")),
    (torch.bfloat16, Formats("8bit", "split")),
    (torch.bfloat16, Formats("fp32", "stochastic")),
)


def compile_ahead(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, Any],
    target: GPUTarget,
) -> Any:
    """A kernel as Triton would compile it to run it."""
    if triton.__version__.startswith("3.2."):
        source = ASTSource(kernel, signature, constants)
    else:
        signature = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, places)
    return triton.compile(source, target=target, options=options)


def compile_kernel(
    dtype: torch.dtype, target: GPUTarget, *, controlled: bool = False, formats: Formats = PLAIN
) -> Any:
    """The engine's kernel for params of ``dtype``, in ``formats``."""
    signature = {"rows": "*i64", "scalars": "*fp32", "num_rows": "i32"}
    kernel, options = engine.update_chunk, engine.OPTIONS
    if formats.are_plain:
        constants = engine.constants("adamod", dtype, NUM_SCALARS)
    else:
        signature = {"rows": "*i64", "coded": "*i64"} | signature  # in the kernel's order
        kernel, options = coded.update_coded_chunk, coded.OPTIONS
        constants = coded.constants("adamod", dtype, formats, NUM_SCALARS)
    if controlled:
        signature["control"] = "*fp32"
    else:
        constants["control"] = None
    return compile_ahead(kernel, signature, constants, options, target)


def bytes_of(dtype: torch.dtype, formats: Formats) -> list[int]:
    """Of one element in each stream that is stored; the gradient's are those of the param."""
    remainder = [2] * formats.splits_weights
    return [dtype.itemsize, *[STATE_FORMATS[formats.state]] * len(AdaMod.states), *remainder]


def vector_path(code: list[Instruction]) -> list[Instruction]:
    """What whole blocks go through: from the first 128-bit load to the last 128-bit store.

    They share their loop with the masked path, which has no such accesses.
    """
    loads = [i for i, line in enumerate(code) if accesses([line])["LDG", 128]]
    stores = [i for i, line in enumerate(code) if accesses([line])["STG", 128]]
    return code[loads[0] : stores[-1] + 1]


def resources(kernel: Any, arch: int, dtype: torch.dtype, formats: Formats = PLAIN) -> Resources:
    """What the kernel takes of a GPU, and instructions per element on the vector path."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        used = output(CUOBJDUMP, "--dump-resource-usage", cubin)
        code = instructions(output(CUOBJDUMP, "-sass", cubin).splitlines())
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used))
    registers = int(numbers["REG"])
    threads = WARP * engine.NUM_WARPS
    coded_block = coded.block_size(dtype, formats.state)
    return Resources(
        registers=registers,
        spilled=int(numbers["STACK"]) + int(numbers["LOCAL"]),
        block_threads=threads,
        blocks=resident_blocks(str(arch), registers, threads),
        elements=(engine.BLOCK_SIZE if formats.are_plain else coded_block) // threads,
        instructions=len(vector_path(code)),
        loaded_bytes=dtype.itemsize + sum(bytes_of(dtype, formats)),
    )


def main() -> None:
    for arch in ARCHS:
        for dtype in DTYPES:
            found = resources(compile_kernel(dtype, GPUTarget("cuda", arch, WARP)), arch, dtype)
            print(f"| {dtype} | sm_{arch} | {found.cell()} |")
        for dtype, formats in CODED:
            kernel = compile_kernel(dtype, GPUTarget("cuda", arch, WARP), formats=formats)
            found = resources(kernel, arch, dtype, formats)
            print(f"| {dtype}, {' '.join(formats)} | sm_{arch} | {found.cell()} |")


if __name__ == "__main__":
    main()
