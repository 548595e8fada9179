"""A record with planted figures, for tests of what reads records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench import fits
from bench.contestants import NAMES
from bench.plan import catalogue
from bench.record import SCHEMA, LeftOut, ListFacts, Record, Result, Spread, rounded

COPY, IN_PLACE, FASTEST_IN_PLACE = 50.0, 90.0, 117.0  # GB/s
NS_PER_ELEMENT, US_PER_TENSOR, US_PER_STEP = 0.4, 0.2, 10.0  # of our own
SLOWER = 12.0  # times ours, everyone else

MODELS = ("small-1000", "single-50m", "gpt2-124m", "resnet50")
SIZES = tuple(f"size-1e{power}" for power in range(3, 9))
COUNTS = ("tensors-1", "tensors-10", "tensors-100", "tensors-1000", "tensors-10000")
OURS = tuple(name for name in NAMES if name.startswith("adamod_fused "))
ON_CPU = tuple(name for name in NAMES if name not in OURS or name.startswith("adamod_fused cpu"))
STATE_BYTES = {"16bit": 6 + 3 / 32, "8bit": 3 + 3 / 32}  # of ours, by the end of their names


def spread(median: float, n: int = 7) -> Spread:
    """One that scatters by some percent around ``median``."""
    return Spread(*(rounded(median * factor) for factor in (1, 0.97, 1.04, 0.9, 1.3)), n)


def result(name: str, contestant: str, dtype: str = "float32", **changes: Any) -> Result:
    """What a contestant would be measured with whose cost is linear; ``changes`` are its fields."""
    params = catalogue()[name]
    slower = 1.0 if contestant in OURS else SLOWER
    host_us = slower * (US_PER_STEP + US_PER_TENSOR * params.tensors)
    step_ms = slower * NS_PER_ELEMENT * params.numel / 1e6 + host_us / 1e3
    state_bytes = STATE_BYTES.get(contestant.split()[-1], 12.0)
    bytes_per_param = (12 if dtype == "float32" else 6) + 2 * state_bytes
    gb_per_s = rounded(bytes_per_param * params.numel / step_ms / 1e6)
    made = Result(
        list=name,
        contestant=contestant,
        dtype=dtype,
        step_ms=spread(step_ms),
        wall_us=None,
        host_us=spread(host_us),
        host_us_per_tensor=rounded(host_us / params.tensors),
        kernel_us=rounded(step_ms * 1e3 - host_us) if contestant in OURS else None,
        bytes_per_param=bytes_per_param,
        GB_per_s=gb_per_s,
        share_of_copy=rounded(gb_per_s / COPY),
        over_adam=rounded(slower / SLOWER),
        state_bytes_per_param=state_bytes,
        peak_bytes=None,
        launches=None,
    )
    return replace(made, **changes)


def record(results: Sequence[Result] | None = None, **changes: Any) -> Record:
    """Of a CPU, with every contestant on every list unless ``results`` are given."""
    if results is None:
        names = (*MODELS, *SIZES, *COUNTS)
        results = [result(name, contestant) for name in names for contestant in ON_CPU]
    lists = {
        name: ListFacts(catalogue()[name].tensors, catalogue()[name].numel, "planted")
        for name in dict.fromkeys(made.list for made in results)
    }
    made = Record(
        schema=SCHEMA,
        complete=True,
        quick=False,
        date="2026-01-02T03:04:05+00:00",
        commit="0123456789abcdef0123456789abcdef01234567",
        device="cpu",
        machine={"cpu": "a processor", "gpu": "a GPU", "cores": 2, "threads": 2, "load": 0.5},
        versions={"python": "3.11.0", "torch": "2.13.0"},
        copy_GB_per_s=spread(COPY),
        in_place_GB_per_s=spread(IN_PLACE),
        absent={"apex FusedAdam": "not installed"},
        left_out=(LeftOut("moe", "torchao AdamW8bit", "float32", "too many shapes"),),
        lists=lists,
        results=tuple(results),
        fits=fits.fits(results, lists),
    )
    return replace(made, **changes)
