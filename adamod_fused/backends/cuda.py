"""The CUDA backend: csrc's engine on the caller's current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codes import Values
from . import extension
from .base import Status, addresses_of, dtype_name, refusal


class CudaBackend:
    """Hand-written CUDA, one launch for all tensors of a device and dtype."""

    name = "cuda"
    counts_on_device = True
    is_uninterrupted = True
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def __init__(self, module: Any = extension.cuda) -> None:
        self._module = module

    @property
    def chunk_size(self) -> int:
        return self._module.chunk_size

    def status(self) -> Status:
        if self._module is None:
            return extension.cuda_status
        if not torch.cuda.is_available():
            return Status(
                False,
                "torch sees no CUDA device",
                "use a machine with an NVIDIA GPU, its driver and a torch built with CUDA",
            )
        unusable = [self._why_unusable(i) for i in range(torch.cuda.device_count())]
        if None in unusable:
            return Status(True)
        remedy = "update the NVIDIA driver, or build for this GPU (ADAMOD_CUDA_ARCHS)"
        return Status(False, str(unusable[0]), remedy)

    def _why_unusable(self, index: int) -> str | None:
        return self._module.why_unusable(index)

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        refused = refusal(device, dtype, "cuda", self.dtypes)
        if refused is None and self._module is not None and torch.cuda.is_available():
            refused = self._why_unusable(device.index)  # one GPU may be older than another
        return refused

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
        stream = torch.cuda.current_stream(device).cuda_stream
        return self.launcher_on(rule, table, index, device.index, dtype, control, stream, observed)

    def launcher_on(
        self,
        rule: str,
        table: Any,
        index: int,
        device: int,
        dtype: torch.dtype,
        control: Tensor | None,
        stream: int,
        observed: Tensor | None = None,
    ) -> Callable[[], None]:
        """As ``launcher``, by the engine's device ``device``, which it selects, on a raw stream."""
        batch = table.batch(index)
        there = batch.counts_on_device
        return partial(
            self._module.step,
            rule,
            dtype_name(dtype),
            batch.rows_address,
            batch.num_rows,
            0 if there else table.scalars_address,
            0 if there else table.num_scalars,
            batch.num_chunks,
            device,
            stream,
            control=0 if control is None else control.data_ptr(),
            counts=batch.counts_address if there else 0,
            groups=batch.groups_address if there else 0,
            num_groups=batch.num_groups if there else 0,
            coded=batch.coded_address if batch.is_coded else 0,
            state_format=batch.state_format,
            weight_format=batch.weight_format,
            observed=0 if observed is None else observed.data_ptr(),
        )

    def sum_squares(self, grads: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            return self.launch_sum_squares(grads, device, dtype, device.index, stream)

    def launch_sum_squares(
        self, grads: Any, device: torch.device, dtype: torch.dtype, index: int, stream: int
    ) -> Tensor:
        """As ``sum_squares``, by the engine's device ``index`` on the raw stream ``stream``."""
        sums = torch.empty(grads.num_segments + 1, dtype=torch.float64, device=device)
        partials, out = sums[:-1], sums[-1]
        self._module.sum_squares(
            dtype_name(dtype),
            grads.rows_address,
            grads.num_rows,
            grads.num_segments,
            partials.data_ptr(),
            out.data_ptr(),
            index,
            stream,
        )
        return out

    def decode(
        self,
        kinds: Sequence[Values],
        coded: Sequence[Tensor],
        exponents: Tensor,
        values: Sequence[Tensor],
    ) -> None:
        device = exponents.device
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            self.launch_decode(kinds, coded, exponents, values, device.index, stream)

    def launch_decode(
        self,
        kinds: Sequence[Values],
        coded: Sequence[Tensor],
        exponents: Tensor,
        values: Sequence[Tensor],
        index: int,
        stream: int,
    ) -> None:
        """As ``decode``, by the engine's device ``index`` on the raw stream ``stream``."""
        self._module.decode(*addresses_of(kinds, coded, exponents, values), index, stream)

    def encode(
        self,
        kinds: Sequence[Values],
        values: Sequence[Tensor],
        coded: Sequence[Tensor],
        exponents: Tensor,
    ) -> None:
        device = exponents.device
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            self.launch_encode(kinds, values, coded, exponents, device.index, stream)

    def launch_encode(
        self,
        kinds: Sequence[Values],
        values: Sequence[Tensor],
        coded: Sequence[Tensor],
        exponents: Tensor,
        index: int,
        stream: int,
    ) -> None:
        """As ``encode``, by the engine's device ``index`` on the raw stream ``stream``."""
        states = addresses_of(kinds, coded, exponents, values)
        self._module.encode(dtype_name(values[0].dtype), *states, index, stream)
