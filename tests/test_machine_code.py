"""What nvcc makes of the CUDA engine, read from its output: no GPU needed, only the compiler.

One pass over memory is a claim about machine code: in every kernel each stream is loaded and
stored once, 128 bits at a time, and besides the table nothing else is. One rounding per operation
is a claim about PTX: ptxas may fuse a multiplication with an addition only where neither names its
rounding, as ``.rn`` does (PTX ISA, add and mul of floating point). In machine code it could not be
told: the exact division and square root are themselves made of fused instructions.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("75", "80", "86", "89", "90", "100", "120")

# Of each rule: how many states and scalars it has, and what it computes for one element.
RULES = {
    "AdaMod": {
        "states": 3,
        "scalars": 12,
        "operations": {"mul": 12, "add": 4, "sub": 1, "div": 1, "sqrt": 1},
    },
}
ITEMSIZES = {"Float32": 4, "BFloat16": 2, "Float16": 2}
KERNELS = sorted(product(RULES, ITEMSIZES, ("Value", "Address")))
KERNEL_NAME = re.compile(r"step_kernelI\d+(\w+?)IfE\d+(B?Float\d\d)\w*TableBy(Value|Address)")
ENTRY = r"Compiling entry function '(\S+)' for 'sm_(\d+)'"
USAGE = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"


def kernel_of(mangled):
    found = KERNEL_NAME.search(mangled)
    assert found, f"not a kernel of the engine: {mangled}"
    return found.groups()


def tool(name):
    """A program of the CUDA toolkit: from CUDA_HOME, PATH, or the copy that Triton carries."""
    folders = [os.environ["CUDA_HOME"] + "/bin"] if "CUDA_HOME" in os.environ else []
    folders.append(os.environ["PATH"])
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        folders += [f"{p}/backends/nvidia/bin" for p in triton.submodule_search_locations]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        pytest.skip(f"no {name} in CUDA_HOME/bin, on PATH or in the triton package")
    return path


def product_flags():
    """The flags that setup.py gives to nvcc, but for its jobs, whose messages would interleave."""
    script = (ROOT / "setup.py").read_text().replace("$\n", "")
    flags = re.search(r"^nvcc_flags = (.*)$", script, re.MULTILINE)
    assert flags, "setup.py has a line `nvcc_flags = ...`"
    return re.sub(r"--threads \d+", "", flags[1]).split()


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """The compiled engine, half of the architectures in each file, and ptxas's messages."""
    nvcc = tool("nvcc")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    archs = [arch for arch in ARCHS if f"compute_{arch}\n" in known]
    folder = tmp_path_factory.mktemp("machine_code")

    def build(part):
        target = folder / f"cuda{part}.o"
        codes = [
            f"-gencode=arch=compute_{arch},code=[compute_{arch},sm_{arch}]"
            for arch in archs[part::2]
        ]
        source = ROOT / "csrc" / "engine" / "cuda.cu"
        command = [nvcc, *product_flags(), "-Xptxas=-v", *codes, "-c", source, "-o", target]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return target, result.stdout + result.stderr

    with ThreadPoolExecutor(2) as pool:
        targets, messages = zip(*pool.map(build, range(2)), strict=True)
    return targets, "".join(messages)


def disassemble(objects, kind, arch_line, kernel_line):
    """The lines of each (architecture, kernel) in cuobjdump's listing."""
    cuobjdump = tool("cuobjdump")
    listing = {}
    for target in objects[0]:
        result = subprocess.run([cuobjdump, kind, target], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        arch, lines = None, []
        for line in result.stdout.splitlines():
            if found := re.search(arch_line, line):
                arch = found[1]
            elif found := re.search(kernel_line, line):
                lines = listing[arch, kernel_of(found[1])] = []
            lines.append(line)
    return listing


@pytest.fixture(scope="session")
def sass(objects):
    return disassemble(objects, "-sass", r"^\s*code for sm_(\d+)", r"Function : (\S+)")


@pytest.fixture(scope="session")
def ptx(objects):
    return disassemble(objects, "-ptx", r"^\.target sm_(\d+)", r"\.entry (\S+)\(")


def kernels_of(listing, arch):
    found = {kernel: lines for (a, kernel), lines in listing.items() if a == arch}
    if not found:
        pytest.skip(f"this nvcc does not know sm_{arch}")
    assert sorted(found) == KERNELS
    return found


@pytest.mark.parametrize("arch", ARCHS)
def test_no_spill_and_no_stack(objects, arch):
    usage = re.findall(rf"{ENTRY}.*?{USAGE}", objects[1], re.DOTALL)
    listing = {(a, kernel_of(name)): numbers for name, a, *numbers in usage}
    for kernel, numbers in kernels_of(listing, arch).items():
        assert numbers == ["0", "0", "0"], kernel


def memory_instructions(lines):
    """Loads and stores by kind and width in bits; constant memory is not memory traffic."""
    counts = Counter()
    for line in lines:
        found = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\w+)(\S*)", line)
        if found and re.match(r"LD(?!CU?$)|ST|ATOM|RED|U(LD|ST)(?!C$)|UBLK|UTMA", found[1]):
            width = re.search(r"\.[US]?(8|16|64|128|256)\b", found[2])
            counts[found[1], int(width[1]) if width else 32] += 1
    return counts


@pytest.mark.parametrize("arch", ARCHS)
def test_every_stream_is_loaded_and_stored_once(sass, arch):
    for (rule, storage, table), lines in kernels_of(sass, arch).items():
        itemsize = ITEMSIZES[storage]
        group = 16 // itemsize
        states = [4] * RULES[rule]["states"]
        expected = Counter()
        for kind, itemsizes in (
            ("LDG", [itemsize, itemsize, *states]),
            ("STG", [itemsize, *states]),
        ):
            for size in itemsizes:
                expected[kind, 128] += group * size // 16  # in the body
                expected[kind, 8 * size] += 1  # in the loop over single elements
        if table == "Address":
            expected["LDG", 64] += 1  # first_chunk, in the search
            expected["LDG", 64] += 5 + len(states)  # the row's words that this rule has a use for
            expected["LDG", 32] += RULES[rule]["scalars"]
        assert memory_instructions(lines) == expected, (rule, storage, table)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_operation_is_rounded_once(ptx, arch):
    for (rule, storage, table), lines in kernels_of(ptx, arch).items():
        arithmetic = Counter(
            found[0]
            for found in re.findall(
                r"\b((add|sub|mul|div|sqrt|fma|mad|rcp|rsqrt)(\.\w+)*\.f(16|32|64)(x2)?)\b",
                "\n".join(lines),
            )
        )
        elements = 16 // ITEMSIZES[storage] + 1  # a group in the body, one in the other loop
        operations = RULES[rule]["operations"].items()
        expected = {f"{name}.rn.f32": elements * count for name, count in operations}
        assert arithmetic == expected, (rule, storage, table)
