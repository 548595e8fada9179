"""What nvcc makes of the CUDA engine, read from its output: no GPU needed, only the compiler."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .occupancy import LIMITS

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "csrc" / "engine"
ARCHS = tuple(LIMITS)

# Of a mangled name: each part behind its length, template arguments between I and E.
KERNEL_NAME = re.compile(r"\d([a-z_]+)_kernel")
RULE = re.compile(r"I\d+(\w+?)IfE")
STORAGE = re.compile(r"\d(B?Float\d\d)")
TABLE = re.compile(r"TableBy(Value|Address)")
FORMATS = re.compile(r"(Plain|Split|Stochastic)\w*?ELi(\d)E")
ENTRY = r"Compiling entry function '(\S+)' for 'sm_(\d+)'"
USAGE = r"(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
# Address and text; what it does, how wide; where it branches to.
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
ACCESS = re.compile(r"(?:@!?U?P\w+\s+)?(\w+)(\S*)")
BRANCH = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)$")


class Kernel(NamedTuple):
    """A kernel: its name and the arguments of its template, "" where it does not have one."""

    rule: str
    storage: str
    table: str
    name: str = "step"
    weights: str = ""
    state_bytes: str = ""

    @classmethod
    def named(cls, mangled: str) -> Kernel:
        name, rule, storage, table = (
            part[1] if (part := pattern.search(mangled)) else ""
            for pattern in (KERNEL_NAME, RULE, STORAGE, TABLE)
        )
        if not name:
            raise ValueError(f"not a kernel of the engine: {mangled}")
        formats = FORMATS.search(mangled)
        return cls(rule, storage, table, name, *(formats.groups() if formats else ()))


class Usage(NamedTuple):
    """What ptxas says of a kernel."""

    stack: int
    spilled: int
    registers: int


class Instruction(NamedTuple):
    """A line of machine code."""

    address: int
    text: str


Listing = dict[tuple[str, Kernel], list[str]]


def tool(name: str) -> str:
    """A program of the CUDA toolkit: from CUDA_HOME, PATH, or the copy that Triton carries.

    Raises:
        FileNotFoundError: it is in none of them.
    """
    folders = [os.environ["CUDA_HOME"] + "/bin"] if "CUDA_HOME" in os.environ else []
    folders.append(os.environ["PATH"])
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        locations = triton.submodule_search_locations or ()
        folders += [f"{path}/backends/nvidia/bin" for path in locations]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        raise FileNotFoundError(f"no {name} in CUDA_HOME/bin, on PATH or in the triton package")
    return path


def output(*command: str | Path) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it fails; the message is the end of what it printed.
    """
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stdout[-2000:]}")
    return result.stdout


def nvcc_flags() -> list[str]:
    """The flags that setup.py gives to nvcc, but for its jobs, whose messages would interleave."""
    script = (ROOT / "setup.py").read_text().replace("$\n", "")
    flags = re.search(r"^nvcc_flags = (.*)$", script, re.MULTILINE)
    if flags is None:
        raise ValueError("setup.py has no line `nvcc_flags = ...`")
    return re.sub(r"--threads \d+", "", flags[1]).split()


def known_archs() -> list[str]:
    """Those of ARCHS that this nvcc compiles for."""
    listed = output(tool("nvcc"), "--list-gpu-arch")
    return [arch for arch in ARCHS if f"compute_{arch}\n" in listed]


def compile_engine(
    target: Path, archs: Iterable[str], tuning: str = "", source: str = "cuda.cu"
) -> str:
    """Compiles a file into an object file with machine code and PTX; returns ptxas's messages.

    ``tuning`` is C++ that changes members of ``t``, csrc/engine/cuda_tuning.h.
    """
    codes = [f"-gencode=arch=compute_{a},code=[compute_{a},sm_{a}]" for a in archs]
    define = [f"-DADAMOD_TUNING={tuning}"] if tuning else []
    flags = [*nvcc_flags(), "-Xptxas=-v", *codes, *define]
    return output(tool("nvcc"), *flags, "-c", ENGINE / source, "-o", target)


def usage(messages: str) -> dict[tuple[str, Kernel], Usage]:
    """What ptxas says of each kernel, by architecture and kernel."""
    found = re.findall(rf"{ENTRY}.*?{USAGE}", messages, re.DOTALL)
    return {(arch, Kernel.named(name)): Usage(*map(int, numbers)) for name, arch, *numbers in found}


def sass(target: Path) -> Listing:
    """The machine code in an object file, by architecture and kernel."""
    return _disassemble(target, "-sass", r"^\s*code for sm_(\d+)", r"Function : (\S+)")


def ptx(target: Path) -> Listing:
    """The PTX in an object file, by architecture and kernel."""
    return _disassemble(target, "-ptx", r"^\.target sm_(\d+)", r"\.entry (\S+)\(")


def _disassemble(target: Path, kind: str, arch_line: str, kernel_line: str) -> Listing:
    listing: Listing = {}
    arch, lines = "", list[str]()
    for line in output(tool("cuobjdump"), kind, target).splitlines():
        if found := re.search(arch_line, line):
            arch = found[1]
        elif found := re.search(kernel_line, line):
            lines = listing[arch, Kernel.named(found[1])] = []
        lines.append(line)
    return listing


def instructions(lines: Iterable[str]) -> list[Instruction]:
    """The machine code among the lines of a listing."""
    found = map(INSTRUCTION.match, lines)
    return [Instruction(int(match[1], 16), match[2]) for match in found if match]


def accesses(code: Iterable[Instruction]) -> Counter[tuple[str, int]]:
    """Loads and stores by kind and width in bits; constant memory is not memory traffic."""
    counts: Counter[tuple[str, int]] = Counter()
    for line in code:
        found = ACCESS.match(line.text)
        if found and re.match(r"LD(?!CU?$)|ST|ATOM|RED|U(LD|ST)(?!C$)|UBLK|UTMA", found[1]):
            width = re.search(r"\.[US]?(8|16|64|128|256)\b", found[2])
            counts[found[1], int(width[1]) if width else 32] += 1
    return counts


def loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """From the target of each backward branch to the branch."""
    targets = ((BRANCH.search(text), address) for address, text in code)
    spans = [(int(to[1], 16), at) for to, at in targets if to and int(to[1], 16) < at]
    return [[line for line in code if start <= line.address <= end] for start, end in spans]


def vector_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The innermost loop with 128-bit stores; where there are several, that with most of them.

    What it calls for rare operands (the square root of a subnormal, say) lies outside of it.
    """
    found = loops(code)
    stores = {id(loop): accesses(loop)["STG", 128] for loop in found}
    found = [loop for loop in found if stores[id(loop)]]
    inner = [loop for loop in found if not any(_holds(loop, other) for other in found)]
    if not inner:
        raise ValueError("there is no loop with 128-bit stores")
    return max(inner, key=lambda loop: stores[id(loop)])


def _holds(loop: list[Instruction], other: list[Instruction]) -> bool:
    starts, ends = loop[0].address, loop[-1].address
    return loop is not other and starts <= other[0].address and other[-1].address <= ends


def compile_all(
    folder: Path, archs: Sequence[str], source: str = "cuda.cu"
) -> tuple[list[Path], str]:
    """A file as it is, compiled into two object files at once, and ptxas's messages."""
    parts = [part for part in (archs[::2], archs[1::2]) if part]
    targets = [folder / f"cuda{i}.o" for i in range(len(parts))]
    compile_part = functools.partial(compile_engine, source=source)
    with ThreadPoolExecutor() as pool:
        return targets, "".join(pool.map(compile_part, targets, parts))
