"""The trials: what each changes, and what was expected of it before it was first measured.

The expectations come from the machine code (``python -m bench.kernels``). An H200 has 132
multiprocessors; CUB wants 48 KiB in flight on each (bench/occupancy.py), which keeps 4.8 TB/s
busy for 1.3 us.
"""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
    """A variant of a backend."""

    name: str
    changes: dict[str, int | bool]
    prediction: str


DEFAULT = "default"
UNCHANGED = Trial(DEFAULT, {}, "")


# `changes` are members of Tuning, csrc/engine/cuda_tuning.h.
CUDA = (
    Trial(
        "chunk 2048",
        {"chunk_size": 2048},
        "Large lists within 1 %: four times the blocks, but a block's 1 us of looking up its row "
        "hides behind three others; neighbouring blocks touch neighbouring memory, if that helps. "
        "small-10000 unchanged: each tensor is one chunk either way.",
    ),
    Trial(
        "chunk 32768",
        {"chunk_size": 32768},
        "GPT-2 1 to 2 % slower: 3,900 blocks on 528 places end raggedly. One large tensor within "
        "1 %, small-10000 unchanged.",
    ),
    Trial(
        "block 128",
        {"block_threads": 128, "chunk_size": 4096},
        "small-10000 takes 0.5 to 0.7 of the device's time: 7 blocks, not 3, are resident, and a "
        "tensor of 64 keeps 16 threads busy. Large lists within 1 %.",
    ),
    Trial(
        "block 512",
        {"block_threads": 512, "chunk_size": 16384},
        "small-10000 1.3 to 2 times slower: 1 block is resident. Large lists within 1 %.",
    ),
    Trial(
        "2 groups",
        {"groups": 2},
        "float32: 160 KiB in flight in place of 80, both above what is needed, so large lists "
        "within 1 %. bfloat16 within 1 %: 122 registers by address, 90 by value, 2 blocks.",
    ),
    Trial(
        "4 groups",
        {"groups": 4},
        "Large lists 0 to 3 % slower: 2 blocks of 256 leave 16 warps to hide arithmetic.",
    ),
    Trial(
        "4 blocks",
        {"min_blocks": 4},
        "float32 by value unchanged, as it has 4 blocks already; by address 4 in place of 3: "
        "small-10000 0.8 to 0.9. bfloat16 spills 12 bytes: 0 to 2 % slower.",
    ),
    Trial(
        "persistent grid",
        {"persistent": True},
        "Within 1 % for one large tensor; GPT-2 0 to 2 % slower, as blocks get their chunks in a "
        "fixed order. small-10000 0.8 to 1: no block starts anew, but each still searches.",
    ),
    Trial(
        "streaming loads",
        {"streaming_loads": True},
        "Within 1 %: nothing is read twice, and nothing else is in the cache to be kept.",
    ),
    Trial(
        "streaming stores",
        {"streaming_stores": True},
        "Within 1 %, as for the loads.",
    ),
    Trial(
        "streaming both",
        {"streaming_loads": True, "streaming_stores": True},
        "Within 1 %. In training it might keep other kernels' data in the cache; not seen here.",
    ),
    Trial(
        "widest stream",
        {"group_by_widest": True},
        "float32: the same code. bfloat16 0.85 to 1: a warp stores its states in whole 32-byte "
        "sectors, not in halves twice; parameters go in 64 bits. In flight 64 KiB.",
    ),
    Trial(
        "widest stream, 2 groups",
        {"group_by_widest": True, "groups": 2},
        "bfloat16 0.85 to 1, the best guess for 16 bits: whole sectors, and 60 registers, so 4 "
        "blocks and 128 KiB in flight. float32 as with 2 groups.",
    ),
    Trial(
        "table of 11 KiB",
        {"max_table_bytes": 11264},
        "GPT-2's host time 1 to 3 us less: the driver copies a third of the parameter. Device "
        "times unchanged.",
    ),
    Trial(
        "table by address",
        {"max_table_bytes": 1664},
        "GPT-2: 3 to 8 us more on the device for the copy that the kernel waits for, and 5 us on "
        "the host. One tensor still goes by value; small-10000 goes by address either way.",
    ),
    Trial(
        "small and wide",
        {"block_threads": 128, "chunk_size": 4096, "group_by_widest": True, "groups": 2},
        "All that should help at once: small-10000 as with blocks of 128, bfloat16 as with the "
        "widest stream, the rest within 1 %.",
    ),
)

# `changes` are constants of triton_kernels/engine.py. Registers are those of Triton 3.6 on sm_90.
TRITON = (
    Trial(
        "block 512",
        {"BLOCK_SIZE": 512},
        "float32 0.99 to 1.02: 80 registers, 6 programs, 60 KiB in flight in place of 80. bfloat16 "
        "0.95 to 1.02: no exchange through shared memory, but 48 KiB in place of 64.",
    ),
    Trial(
        "block 512, 2 warps",
        {"BLOCK_SIZE": 512, "NUM_WARPS": 2},
        "small-10000 0.6 to 0.8: 8 programs are resident, not 4. Large lists within 1 %.",
    ),
    Trial(
        "block 1024, 2 warps",
        {"NUM_WARPS": 2},
        "float32 within 1 %: 120 KiB in flight in place of 80, but only 12 warps to hide "
        "arithmetic. small-10000 0.8 to 1: 6 programs, each with twice the work.",
    ),
    Trial(
        "block 1024, 8 warps",
        {"NUM_WARPS": 8},
        "float32 1.02 to 1.08: 114 registers leave 2 programs, 40 KiB in flight. bfloat16 the "
        "same with 104 registers and 32 KiB.",
    ),
    Trial(
        "chunk 2048",
        {"CHUNK_SIZE": 2048},
        "Within 2 %: twice the programs, each with half the blocks behind the look at its row.",
    ),
    Trial(
        "chunk 8192",
        {"CHUNK_SIZE": 8192},
        "Within 1 % on all lists.",
    ),
)
