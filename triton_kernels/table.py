"""What the kernels share: how tables get to the device, a program to its row, a step to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK_SIZE = 4096  # elements; the unit of the table's first_chunk

# Columns of the table, csrc/engine/row.h: of Row.
ROW_SIZE = tl.constexpr(8)
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
STATE0 = tl.constexpr(2)
STATE1 = tl.constexpr(3)
STATE2 = tl.constexpr(4)
NUMEL = tl.constexpr(5)
FIRST_CHUNK = tl.constexpr(6)
SCALARS = tl.constexpr(7)

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Matrix(NamedTuple):
    """A matrix in host memory: a writable buffer, not empty, row by row."""

    buffer: memoryview
    columns: int
    dtype: torch.dtype = torch.int64


# Host memory that CUDA graphs read again at every replay: never given back.
_captured: list[Tensor] = []

ALIGNMENT = 16  # bytes, of each matrix on the device


def upload(matrices: Sequence[Matrix], device: torch.device) -> list[Tensor]:
    """The matrices on ``device``, in one copy, on the current stream."""
    sources = [torch.frombuffer(matrix.buffer, dtype=torch.uint8) for matrix in matrices]
    room = [-(-source.numel() // ALIGNMENT) * ALIGNMENT for source in sources]
    on_gpu = device.type == "cuda"
    staging = torch.empty(sum(room), dtype=torch.uint8, device="cpu", pin_memory=on_gpu)
    for source, target in zip(sources, staging.split(room), strict=True):
        target[: source.numel()] = source
    table = staging
    if on_gpu:
        with torch.cuda.device(device):
            table = staging.to(device, non_blocking=True)
            if torch.cuda.is_current_stream_capturing():
                _captured.append(staging)
    return [
        target[: source.numel()].view(matrix.dtype).view(-1, matrix.columns)
        for matrix, source, target in zip(matrices, sources, table.split(room), strict=True)
    ]


@triton.jit
def find_row(rows, num_rows, part, ROW_SIZE: tl.constexpr, FIRST_PART: tl.constexpr):
    """The last row that starts at or before ``part``; empty rows are never the last."""
    row = 0
    end = num_rows
    while end - row > 1:
        middle = (row + end) // 2
        starts_later = tl.load(rows + middle * ROW_SIZE + FIRST_PART) > part
        row = tl.where(starts_later, row, middle)
        end = tl.where(starts_later, middle, end)
    return row


# Columns of Control, csrc/engine/row.h.
GRAD_SCALE = tl.constexpr(0)
SKIP = tl.constexpr(1)


@triton.jit
def skips(control):
    """Whether this step is not to be; there may be no control."""
    return False if control is None else tl.load(control + SKIP) != 0
