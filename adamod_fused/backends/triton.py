"""The Triton backend: the twin kernels in triton_kernels, imported when first asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..codes import Values
from ..extras import installed, is_older, version_of
from . import extension
from .base import Status, refusal

OLDEST = (3, 2)


@cache
def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"adamod_fused.triton_kernels.{name}")


def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as its own switch for debugging asks."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class TritonBackend:
    """One Triton launch for all tensors of a device and dtype."""

    name = "triton"
    counts_on_device = True
    is_uninterrupted = False
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    @property
    def chunk_size(self) -> int:
        return _kernels("engine").CHUNK_SIZE

    def status(self) -> Status:
        if not extension.core_status.available:
            return extension.core_status
        if not installed("triton"):
            return Status(
                False, "the package triton is not installed", "pip install 'adamod_fused[triton]'"
            )
        version = version_of("triton")
        if version is not None and is_older(version, OLDEST):
            return Status(
                False, f"Triton {version} is too old", "pip install 'adamod_fused[triton]'"
            )
        if not torch.cuda.is_available() and not _interpreted():
            return Status(
                False,
                "torch sees no GPU",
                "use a machine with a GPU, its driver and a torch built for it",
            )
        return Status(True)

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return refusal(device, dtype, "cpu" if _interpreted() else "cuda", self.dtypes)

    def zeros_like(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(param, dtype=dtype)

    def launcher(
        self,
        rule: str,
        table: Any,
        index: int,
        device: torch.device,
        dtype: torch.dtype,
        control: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Callable[[], None]:
        return partial(_launch, rule, table, index, device, dtype, control, observed)

    def sum_squares(self, grads: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        table, kernels = _kernels("table"), _kernels("sum_squares")
        columns = len(grads.rows) // grads.num_rows // torch.int64.itemsize
        (rows,) = table.upload([table.Matrix(grads.rows, columns)], device)
        return kernels.sum_squares(dtype, rows, grads.num_segments)

    def decode(
        self,
        kinds: Sequence[Values],
        coded: Sequence[Tensor],
        exponents: Tensor,
        values: Sequence[Tensor],
    ) -> None:
        _kernels("values").decode([k.value for k in kinds], coded, exponents, values)

    def encode(
        self,
        kinds: Sequence[Values],
        values: Sequence[Tensor],
        coded: Sequence[Tensor],
        exponents: Tensor,
    ) -> None:
        _kernels("values").encode([k.value for k in kinds], values, coded, exponents)


def _launch(
    rule: str,
    table: Any,
    index: int,
    device: torch.device,
    dtype: torch.dtype,
    control: Tensor | None,
    observed: Tensor | None,
) -> None:
    engine, prepare = _kernels("engine"), _kernels("prepare")
    matrix, upload = _kernels("table").Matrix, _kernels("table").upload
    batch = table.batch(index)
    num_scalars = extension.core.rules[rule][0]
    halves = [matrix(batch.rows, engine.ROW_SIZE.value)]
    if batch.is_coded:
        halves.append(matrix(batch.coded, _kernels("coded").CODED_SIZE.value))
    if batch.counts_on_device:
        counts = matrix(batch.counts, prepare.COUNT_SIZE.value)
        groups = matrix(batch.groups, prepare.GROUP_SIZE.value)
        counts, groups, rows, *coded = upload([counts, groups, *halves], device)
        scalars = prepare.prepare(rule, counts, groups, num_scalars, control)
    else:
        scalars = matrix(table.scalars, num_scalars, torch.float32)
        scalars, rows, *coded = upload([scalars, *halves], device)
    if batch.num_chunks:
        stored = (*coded, batch.state_format, batch.weight_format) if coded else ()
        step = (rule, dtype, rows, scalars, batch.num_chunks, control)
        engine.step(*step, *stored)
        if observed is not None:
            beside = coded[0] if coded else None
            _kernels("observe").observe(*step, beside, batch.state_format, observed)
