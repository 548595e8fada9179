"""What each kernel of a step takes of a GPU, read from its machine code; `python -m bench.kernels`.

Prints the table in NOTES.md: registers, blocks that are resident on a multiprocessor, KiB that all
their threads load at once, and instructions per element in the loop over vectors.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from adamod_fused import reference

from . import machine_code
from .machine_code import (
    Instruction,
    Kernel,
    Usage,
    accesses,
    compile_engine,
    instructions,
    known_archs,
    usage,
    vector_loop,
)
from .occupancy import resident_blocks

ITEMSIZES = {"Float32": 4, "BFloat16": 2, "Float16": 2}
STATE_ITEMSIZE = 4


class Resources(NamedTuple):
    """What a kernel takes; ``elements`` are those that a thread loads before it computes."""

    registers: int
    spilled: int
    block_threads: int
    blocks: int
    elements: int
    instructions: int
    loaded_bytes: int
    """Of one element: parameter, gradient and states."""

    @property
    def bytes_in_flight(self) -> int:
        """What all resident threads of a multiprocessor load before they compute."""
        return self.blocks * self.block_threads * self.elements * self.loaded_bytes

    @property
    def instructions_per_element(self) -> float:
        return self.instructions / self.elements

    def cell(self) -> str:
        """In a table: registers, blocks, KiB in flight, instructions per element."""
        numbers = f"{self.registers}, {self.blocks}, {self.bytes_in_flight // 1024}"
        spilled = f", {self.spilled} B spilled" if self.spilled else ""
        return f"{numbers}, {self.instructions_per_element:.1f}{spilled}"


Key = tuple[str, Kernel]  # an architecture and a kernel


def resources(
    sass: dict[Key, list[Instruction]], ptx: dict[Key, list[str]], used: dict[Key, Usage]
) -> dict[Key, Resources]:
    """Of every kernel that applies a rule, from what the compiler made and said of it."""
    found = {}
    for key, (_, spilled, registers) in used.items():
        arch, kernel = key
        if kernel.name != "step":
            continue
        states = len(getattr(reference, kernel.rule).states) * STATE_ITEMSIZE
        itemsize = ITEMSIZES[kernel.storage]
        loop = vector_loop(sass[key])
        stored = sum(
            count * bits // 8 for (kind, bits), count in accesses(loop).items() if kind == "STG"
        )
        block = re.search(r"\.maxntid (\d+)", "\n".join(ptx[key]))
        assert block, "the kernel has launch bounds"
        found[key] = Resources(
            registers=registers,
            spilled=spilled,
            block_threads=int(block[1]),
            blocks=resident_blocks(arch, registers, int(block[1])),
            elements=stored // (itemsize + states),
            instructions=len(loop),
            loaded_bytes=2 * itemsize + states,
        )
    return found


def markdown(found: dict[Key, Resources]) -> str:
    """A table with a row for each kernel and a column for each architecture."""
    archs = sorted({arch for arch, _ in found}, key=int)
    lines = [["params", "table by", *(f"sm_{arch}" for arch in archs)]]
    lines.append(["---"] * len(lines[0]))
    for kernel in sorted({kernel for _, kernel in found}):
        cells = [found[arch, kernel].cell() for arch in archs]
        lines.append([kernel.storage, kernel.table, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.kernels", description=__doc__)
    parser.add_argument("--tuning", default="", help="members of csrc/engine/cuda_tuning.h: t.x=1;")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "cuda.o")
        messages = compile_engine(target, known_archs(), parser.parse_args().tuning)
        code = {key: instructions(lines) for key, lines in machine_code.sass(target).items()}
        intermediate = machine_code.ptx(target)
    print(markdown(resources(code, intermediate, usage(messages))))


if __name__ == "__main__":
    main()
