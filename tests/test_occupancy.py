"""How many blocks are resident: bench/occupancy.py against NVIDIA's own calculator."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import machine_code
from bench.occupancy import LIMITS, REGISTERS, resident_blocks

# Prints a line for each architecture, number of registers and size of block.
CALCULATOR = """
#include <cuda_occupancy.h>
#include <cstdio>

int main() {
  const int archs[][3] = {%s};  // major, minor, threads of a multiprocessor
  for (const auto& [major, minor, threads] : archs) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.warpSize = 32;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = threads;
    device.regsPerBlock = device.regsPerMultiprocessor = %d;
    device.sharedMemPerBlock = device.sharedMemPerMultiprocessor = 65536;
    device.reservedSharedMemPerBlock = major >= 8 ? 1024 : 0;
    device.numSms = 1;
    for (int registers = 16; registers <= 255; ++registers) {
      for (int block = 32; block <= 1024; block += 32) {
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        const cudaOccDeviceState state;
        cudaOccResult found;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&found, &device, &kernel, &state, block, 0)) {
          return 1;
        }
        std::printf("%%d%%d %%d %%d %%d\\n", major, minor, registers, block,
                    found.activeBlocksPerMultiprocessor);
      }
    }
  }
}
"""


@pytest.mark.build
def test_agrees_with_cuda_occupancy_h(tmp_path: Path) -> None:
    archs = [f"{{{a[:-1]}, {a[-1]}, {limits.threads}}}" for a, limits in LIMITS.items()]
    source = tmp_path / "calculator.cpp"
    source.write_text(CALCULATOR % (", ".join(archs), REGISTERS))
    try:
        nvcc = machine_code.tool("nvcc")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    machine_code.output(nvcc, "-std=c++17", source, "-o", tmp_path / "calculator")
    lines = machine_code.output(tmp_path / "calculator").splitlines()
    assert len(lines) == len(LIMITS) * 240 * 32
    for line in lines:
        arch, *numbers = line.split()
        registers, block, blocks = map(int, numbers)
        assert resident_blocks(arch, registers, block) == blocks, line


@pytest.mark.parametrize(
    ("arch", "registers", "block_threads", "blocks"),
    [
        ("90", 32, 256, 8),  # all 2,048 threads
        ("90", 33, 256, 6),  # 40 registers are given out for 33
        ("90", 64, 256, 4),
        ("90", 72, 128, 7),
        ("90", 16, 32, 32),  # no more blocks than that
        ("86", 32, 256, 6),  # 1,536 threads
        ("90", 128, 1024, 0),
    ],
)
def test_known_answers(arch: str, registers: int, block_threads: int, blocks: int) -> None:
    assert resident_blocks(arch, registers, block_threads) == blocks
