"""How many blocks of a kernel run at once on one multiprocessor, from what the compiler reports.

The rules are those of ``cuda_occupancy.h`` in the CUDA toolkit, for kernels that use little shared
memory or none; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

REGISTERS = 65536  # of a multiprocessor
PARTITIONS = 4  # of a multiprocessor, each with a quarter of its registers and warps
REGISTER_UNIT = 256  # in which a warp is given registers
WARP = 32


class Limits(NamedTuple):
    """What one multiprocessor holds."""

    threads: int
    blocks: int


# By sm_ number: CUDA C++ Programming Guide, technical specifications per compute capability.
LIMITS = {
    "75": Limits(1024, 16),
    "80": Limits(2048, 32),
    "86": Limits(1536, 16),
    "89": Limits(1536, 24),
    "90": Limits(2048, 32),
    "100": Limits(2048, 32),
    "120": Limits(1536, 24),
}

# KiB that must be under way on a multiprocessor to keep its memory busy, as CUB has it in
# cub/device/dispatch/tuning/tuning_transform.cuh of CUDA 13.0; 48 is for an H200.
NEEDED_IN_FLIGHT = {"75": 12, "80": 16, "86": 16, "89": 16, "90": 48, "100": 48, "120": 48}


def resident_blocks(arch: str, registers: int, block_threads: int) -> int:
    """Blocks of ``block_threads`` threads with ``registers`` each that run at once."""
    limits = LIMITS[arch]
    warps = -(-block_threads // WARP)
    warp_registers = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    warps_with_registers = REGISTERS // PARTITIONS // warp_registers * PARTITIONS
    resident_warps = min(warps_with_registers, limits.threads // WARP)
    return min(resident_warps // warps, limits.blocks)
