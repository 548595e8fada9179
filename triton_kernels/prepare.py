"""Preparation on the device of the scalars of a table's rows, where their step counts live.

No mathematics: that is the rule's. One program serves as many rows as a warp has lanes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rules import RULES
from .table import skips

ROWS = 32  # of a program

# Columns of Count and Group, csrc/engine/row.h.
COUNT_SIZE = tl.constexpr(2)
STEP = tl.constexpr(0)
GROUP = tl.constexpr(1)

GROUP_SIZE = tl.constexpr(17)
VALUES = tl.constexpr(0)
ADDRESSES = tl.constexpr(8)
WIDE = tl.constexpr(16)


@triton.jit
def hyperparameter(group, INDEX: tl.constexpr):
    """One hyperparameter of each group: the number at its address, or without one its value."""
    value = tl.load(group + VALUES + INDEX).to(tl.float64, bitcast=True)
    address = tl.load(group + ADDRESSES + INDEX)
    wide_bit = (tl.load(group + WIDE) >> INDEX) & 1
    is_narrow = (address != 0) & (wide_bit == 0)
    is_wide = (address != 0) & (wide_bit == 1)
    narrow_ptr = address.to(tl.pointer_type(tl.float32))
    wide_ptr = address.to(tl.pointer_type(tl.float64))
    value = tl.where(is_narrow, tl.load(narrow_ptr, mask=is_narrow, other=0).to(tl.float64), value)
    return tl.where(is_wide, tl.load(wide_ptr, mask=is_wide, other=0), value)


@triton.jit(do_not_specialize=["num_rows"])
def prepare_rows(
    counts,
    groups,
    scalars,
    num_rows,
    control,
    PREPARE: tl.constexpr,
    PREPARE_KEY: tl.constexpr,
    NUM_SCALARS: tl.constexpr,
    NUM_LANES: tl.constexpr,
):
    """One program: counts the step of its rows and prepares their scalars."""
    if skips(control):
        return

    row = tl.program_id(0) * NUM_LANES + tl.arange(0, NUM_LANES).to(tl.int64)
    mask = row < num_rows
    step_address = tl.load(counts + row * COUNT_SIZE + STEP, mask=mask, other=0)
    group_index = tl.load(counts + row * COUNT_SIZE + GROUP, mask=mask, other=0)

    step_ptr = step_address.to(tl.pointer_type(tl.float32))
    step = tl.load(step_ptr, mask=mask, other=0) + 1
    tl.store(step_ptr, step, mask=mask)

    group = groups + group_index * GROUP_SIZE
    PREPARE(
        scalars + row * NUM_SCALARS,
        step.to(tl.int64),
        hyperparameter(group, 0),
        hyperparameter(group, 1),
        hyperparameter(group, 2),
        hyperparameter(group, 3),
        hyperparameter(group, 4),
        hyperparameter(group, 5),
        hyperparameter(group, 6),
        hyperparameter(group, 7),
    )


def constants(rule: str, num_scalars: int) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    prepare = RULES[rule].prepare
    return {
        "PREPARE": prepare,
        "PREPARE_KEY": getattr(prepare, "cache_key", None),  # as engine.constants
        "NUM_SCALARS": num_scalars,
        "NUM_LANES": ROWS,
    }


OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


def prepare(
    rule: str, counts: Tensor, groups: Tensor, num_scalars: int, control: Tensor | None = None
) -> Tensor:
    """Raises every row's step count and prepares its scalars, on the current stream of the device.

    Args:
        rule: a name in ``rules.RULES``.
        counts: int64 ``[num_rows, 2]``: an array of ``Count``.
        groups: int64 ``[num_groups, 17]``: an array of ``Group``.
        num_scalars: of the rule.
        control: as for ``engine.step``; one that skips leaves the counts, and the scalars unset.

    Returns:
        float32 ``[num_rows, num_scalars]``, for ``engine.step``.
    """
    num_rows = len(counts)
    programs = -(-num_rows // ROWS)
    # Room for all rows of all programs: a rule stores without a mask.
    scalars = counts.new_empty((programs * ROWS, num_scalars), dtype=torch.float32)
    with torch.cuda.device_of(counts):
        prepare_rows[(programs,)](
            counts, groups, scalars, num_rows, control, **constants(rule, num_scalars), **OPTIONS
        )
    return scalars[:num_rows]
