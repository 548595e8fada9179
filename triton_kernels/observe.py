"""The look at a step just done: what csrc/engine/observed.h tells, of every segment, in one launch.

The order of additions is the one given there, so the bits are those of every other backend.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .coded import CODED_SIZE, EXPONENTS, STATE_BYTES, STATE_DTYPES
from .coded_states import load_states
from .codes import BLOCK as SHARED
from .rules import RULES
from .sum_squares import SEGMENT_SIZE, halved
from .table import (
    CHUNK_SIZE,
    DTYPES,
    FIRST_CHUNK,
    GRAD,
    GRAD_SCALE,
    NUMEL,
    ROW_SIZE,
    SCALARS,
    STATE0,
    STATE1,
    STATE2,
    find_row,
    skips,
)

LANES = tl.constexpr(256)
HALVINGS = tl.constexpr(8)  # from LANES to one
BINS = tl.constexpr(64)
FIRST_EXPONENT = tl.constexpr(127 - 40)  # biased, of the first bin

# Columns of an observation: numbers in float64, counts, histograms.
STEP = tl.constexpr(0)
SUMS = tl.constexpr(1)
EXTREMES = tl.constexpr(5)
COUNTS = tl.constexpr(9)
HISTOGRAMS = tl.constexpr(12)
COLUMNS = tl.constexpr(12 + 2 * 64)

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def histogram(rate, counts):
    """Of the rates that count, in twice as many bins as there are: the others go behind them."""
    exponent = (rate.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    found = tl.minimum(tl.maximum(exponent - FIRST_EXPONENT, 0), BINS - 1)
    return tl.histogram(tl.reshape(tl.where(counts, found, BINS), [LANES]), 2 * BINS)


@triton.jit
def store_sum(to, sums):
    """Of the lanes ``sums``."""
    tl.store(to + tl.arange(0, 1), halved(tl.reshape(sums, [LANES]), LANES, HALVINGS))


@triton.jit
def store_histogram(to, found):
    """What ``histogram`` found, without the bins of what does not count."""
    bins = tl.arange(0, 2 * BINS)
    tl.store(to + bins, found.to(tl.int64), mask=bins < BINS)


@triton.jit(do_not_specialize=["num_rows"])
def observe_segment(
    rows,
    coded,
    scalars,
    num_rows,
    control,
    observed,
    OBSERVE: tl.constexpr,
    OBSERVE_KEY: tl.constexpr,
    NUM_STATES: tl.constexpr,
    KIND0: tl.constexpr,
    KIND1: tl.constexpr,
    KIND2: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    BYTES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: the segment that begins with the chunk of its number, if one does."""
    if skips(control):
        return
    chunk = tl.program_id(0)
    row_index = find_row(rows, num_rows, chunk, ROW_SIZE, FIRST_CHUNK)
    row = rows + row_index * ROW_SIZE
    first_chunk = tl.load(row + FIRST_CHUNK)
    start = (chunk - first_chunk) * CHUNK
    if start % SEGMENT_SIZE != 0:
        return
    numel = tl.load(row + NUMEL)
    scalars += tl.load(row + SCALARS) * NUM_SCALARS
    slot = first_chunk * CHUNK // SEGMENT_SIZE + row_index + start // SEGMENT_SIZE
    observed += slot * COLUMNS

    grad_ptr = tl.load(row + GRAD).to(tl.pointer_type(DTYPE))
    state0_ptr = tl.load(row + STATE0).to(tl.pointer_type(STATE_DTYPE))
    state1_ptr = state0_ptr
    state2_ptr = state0_ptr
    if NUM_STATES > 1:
        state1_ptr = tl.load(row + STATE1).to(tl.pointer_type(STATE_DTYPE))
    if NUM_STATES > 2:
        state2_ptr = tl.load(row + STATE2).to(tl.pointer_type(STATE_DTYPE))
    exponents_ptr = state0_ptr
    if BYTES < 4:
        exponents = tl.load(coded + row_index * CODED_SIZE + EXPONENTS)
        exponents_ptr = exponents.to(tl.pointer_type(tl.uint8))

    blocks = tl.arange(0, LANES // SHARED)
    lanes = blocks[:, None] * SHARED + tl.arange(0, SHARED)[None, :]
    infinity = float("inf")
    rate_sum = tl.zeros(lanes.shape, tl.float64)
    bounded_rate_sum = tl.zeros(lanes.shape, tl.float64)
    grad_square_sum = tl.zeros(lanes.shape, tl.float64)
    update_square_sum = tl.zeros(lanes.shape, tl.float64)
    rate_min = tl.full(lanes.shape, infinity, tl.float32)
    rate_max = tl.full(lanes.shape, -infinity, tl.float32)
    bounded_rate_min = rate_min
    bounded_rate_max = rate_max
    bounded = tl.zeros(lanes.shape, tl.int32)
    dead = tl.zeros(lanes.shape, tl.int32)
    nonfinite = tl.zeros(lanes.shape, tl.int32)
    rate_histogram = tl.zeros([2 * BINS], tl.int32)
    bounded_rate_histogram = tl.zeros([2 * BINS], tl.int32)

    end = tl.minimum(start + SEGMENT_SIZE, numel)
    while start < end:  # not range: the interpreter would make start a Python int, int32 here
        exists = start + lanes < numel
        grad = tl.load(grad_ptr + start + lanes, mask=exists, other=0.0).to(tl.float32)
        if control is not None:
            grad *= tl.load(control + GRAD_SCALE)
        state0, state1, state2 = load_states(
            NUM_STATES,
            KIND0,
            KIND1,
            KIND2,
            BYTES,
            1,
            state0_ptr + start,
            state1_ptr + start,
            state2_ptr + start,
            exponents_ptr + start // SHARED * NUM_STATES,
            lanes,
            blocks * NUM_STATES,
            exists,
            start + blocks * SHARED < numel,
        )
        rate, bounded_rate, update, activity = OBSERVE(scalars, state0, state1, state2)

        is_finite = (tl.abs(grad) < infinity) & (tl.abs(update) < infinity)
        counts = exists & is_finite
        rate_sum += tl.where(counts, rate, 0.0).to(tl.float64)
        bounded_rate_sum += tl.where(counts, bounded_rate, 0.0).to(tl.float64)
        grad = tl.where(counts, grad, 0.0).to(tl.float64)
        grad_square_sum += grad * grad
        update = tl.where(counts, update, 0.0).to(tl.float64)
        update_square_sum += update * update
        rate_min = tl.minimum(rate_min, tl.where(counts, rate, infinity))
        rate_max = tl.maximum(rate_max, tl.where(counts, rate, -infinity))
        bounded_rate_min = tl.minimum(bounded_rate_min, tl.where(counts, bounded_rate, infinity))
        bounded_rate_max = tl.maximum(bounded_rate_max, tl.where(counts, bounded_rate, -infinity))
        bounded += (counts & (bounded_rate < rate)).to(tl.int32)
        dead += (counts & (activity == 0)).to(tl.int32)
        nonfinite += (exists & (is_finite == 0)).to(tl.int32)
        rate_histogram += histogram(rate, counts)
        bounded_rate_histogram += histogram(bounded_rate, counts)
        start += LANES

    floats = observed.to(tl.pointer_type(tl.float64))
    tl.store(floats + STEP, tl.load(scalars + (NUM_SCALARS - 1)).to(tl.float64))
    store_sum(floats + SUMS, rate_sum)
    store_sum(floats + (SUMS + 1), bounded_rate_sum)
    store_sum(floats + (SUMS + 2), grad_square_sum)
    store_sum(floats + (SUMS + 3), update_square_sum)
    tl.store(floats + EXTREMES, tl.min(tl.min(rate_min, 1), 0).to(tl.float64))
    tl.store(floats + (EXTREMES + 1), tl.max(tl.max(rate_max, 1), 0).to(tl.float64))
    tl.store(floats + (EXTREMES + 2), tl.min(tl.min(bounded_rate_min, 1), 0).to(tl.float64))
    tl.store(floats + (EXTREMES + 3), tl.max(tl.max(bounded_rate_max, 1), 0).to(tl.float64))
    tl.store(observed + COUNTS, tl.sum(tl.sum(bounded, 1), 0).to(tl.int64))
    tl.store(observed + (COUNTS + 1), tl.sum(tl.sum(dead, 1), 0).to(tl.int64))
    tl.store(observed + (COUNTS + 2), tl.sum(tl.sum(nonfinite, 1), 0).to(tl.int64))
    store_histogram(observed + HISTOGRAMS, rate_histogram)
    store_histogram(observed + (HISTOGRAMS + BINS), bounded_rate_histogram)


def constants(rule: str, dtype: torch.dtype, state_format: str, num_scalars: int) -> dict[str, Any]:
    """The kernel's compile-time arguments: one compilation for each."""
    observe, num_states, values = RULES[rule].observe, RULES[rule].num_states, RULES[rule].values
    kinds = [value.value for value in values] + [None] * (3 - len(values))
    num_bytes = STATE_BYTES[state_format]
    return {
        "OBSERVE": observe,
        "OBSERVE_KEY": getattr(observe, "cache_key", None),  # as engine.constants
        "NUM_STATES": num_states,
        **{f"KIND{k}": kind for k, kind in enumerate(kinds)},
        "NUM_SCALARS": num_scalars,
        "DTYPE": DTYPES[dtype],
        "STATE_DTYPE": STATE_DTYPES[num_bytes],
        "BYTES": num_bytes,
        "CHUNK": CHUNK_SIZE,
    }


def observe(
    rule: str,
    dtype: torch.dtype,
    rows: Tensor,
    scalars: Tensor,
    num_chunks: int,
    control: Tensor | None,
    coded: Tensor | None,
    state_format: str,
    observed: Tensor,
) -> None:
    """Looks at the step that ``engine.step`` has just done with the same arguments.

    ``observed``: zeroed int64 slots on the table's device, as adamod_fused/observed.py numbers
    them.
    """
    with torch.cuda.device_of(rows):
        observe_segment[(num_chunks,)](
            rows,
            coded,
            scalars,
            len(rows),
            control,
            observed,
            **constants(rule, dtype, state_format, scalars.shape[1]),
            **OPTIONS,
        )
