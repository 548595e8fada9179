"""The CPU backend: csrc's engine on torch's number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..codes import Values
from . import extension
from .base import Status, addresses_of, dtype_name, refusal


class CpuBackend:
    """Vectorised C++, AVX2 or AVX-512 where the processor has it."""

    name = "cpu"
    counts_on_device = False
    is_uninterrupted = True
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    @property
    def chunk_size(self) -> int:
        return extension.core.cpu_chunk_size

    @cached_property
    def instruction_set(self) -> str:
        """The fastest that this processor runs: ``"avx512"``, ``"avx2"`` or ``"baseline"``."""
        return extension.core.cpu_instruction_sets()[-1]

    def status(self) -> Status:
        return extension.core_status

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return refusal(device, dtype, "cpu", self.dtypes)

    def zeros_like(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        # A step walks through five tensors at once, and in small pages it waits for addresses to
        # be translated, not only for memory: huge ones took a tenth off a large step.
        state = torch.empty_like(param, dtype=dtype)
        _prefer_huge_pages(state)
        return state.zero_()

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
        factor = 1.0 if control is None else control[0].item()
        return partial(  # by place: names would cost a small model's step more
            extension.core.cpu_step,
            rule,
            dtype_name(dtype),
            table,
            index,
            factor,
            torch.get_num_threads(),
            self.instruction_set,
            0 if observed is None else observed.data_ptr(),
        )

    def sum_squares(self, grads: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        threads = torch.get_num_threads()
        found = extension.core.cpu_sum_squares(
            dtype_name(dtype), grads, threads, self.instruction_set
        )
        return torch.tensor(found, dtype=torch.float64, device=device)

    def decode(
        self,
        kinds: Sequence[Values],
        coded: Sequence[Tensor],
        exponents: Tensor,
        values: Sequence[Tensor],
    ) -> None:
        _prefer_huge_pages(*values)
        states = addresses_of(kinds, coded, exponents, values)
        extension.core.cpu_decode(*states, torch.get_num_threads(), self.instruction_set)

    def encode(
        self,
        kinds: Sequence[Values],
        values: Sequence[Tensor],
        coded: Sequence[Tensor],
        exponents: Tensor,
    ) -> None:
        _prefer_huge_pages(*coded)
        states = addresses_of(kinds, coded, exponents, values)
        dtype = dtype_name(values[0].dtype)
        extension.core.cpu_encode(dtype, *states, torch.get_num_threads(), self.instruction_set)


def _prefer_huge_pages(*tensors: Tensor) -> None:
    """Asks the system for huge pages for new tensors, before anything is written to them."""
    for tensor in tensors:
        extension.core.prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
