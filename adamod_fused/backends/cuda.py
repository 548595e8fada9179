"""The CUDA backend: csrc's engine on the caller's current stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import extension
from .base import Status, dtype_name, refusal


class CudaBackend:
    """Hand-written CUDA, one launch for all tensors of a device and dtype."""

    name = "cuda"
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

    def run(
        self, rule: str, table: Any, index: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # The engine selects the device itself; here torch's idea of the current one is set too.
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            self.launch(rule, table, index, device.index, dtype, stream)

    def launch(
        self, rule: str, table: Any, index: int, device: int, dtype: torch.dtype, stream: int
    ) -> None:
        """Hands batch ``index`` to the engine, to be run on the raw stream ``stream``."""
        batch = table.batch(index)
        self._module.step(
            rule,
            dtype_name(dtype),
            batch.rows_address,
            batch.num_rows,
            table.scalars_address,
            table.num_scalars,
            batch.num_chunks,
            device,
            stream,
        )
