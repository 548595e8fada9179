"""A trial as something that the benchmark measures: AdaMod on a backend of the trial's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import Parameter

from adamod_fused import AdaMod, backends
from adamod_fused.backends import Backend
from adamod_fused.backends.triton import TritonBackend
from adamod_fused.formats import PLAIN, Formats

from ..contestants import BETA3, HYPERPARAMETERS, Contestant
from .declared import Trial


class Tuned(AdaMod):
    """AdaMod that takes a backend given to it for the product's of that name."""

    def __init__(self, params: list[Parameter], backend: Backend, formats: Formats) -> None:
        self._tuned = backend
        super().__init__(
            params,
            beta3=BETA3,
            backend=backend.name,
            state_format=formats.state,
            weight_format=formats.weight,
            min_coded_numel=0,  # a kernel is tried, on tensors of any size
            **HYPERPARAMETERS,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with patch.dict(backends._BACKENDS, {self._tuned.name: self._tuned}):
            return super().step(closure)


class TunedTriton(TritonBackend):
    """The Triton backend with other constants in the modules of its kernels that have them."""

    def __init__(self, trial: Trial) -> None:
        from adamod_fused.triton_kernels import coded, engine

        self._modules = (engine, coded)
        self._changes = trial.changes
        self._chunk_size = int(trial.changes.get("CHUNK_SIZE", engine.CHUNK_SIZE))

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._modules:
                mine: dict[str, Any] = {
                    name: to for name, to in self._changes.items() if hasattr(module, name)
                }
                options = module.OPTIONS | {"num_warps": mine.get("NUM_WARPS", module.NUM_WARPS)}
                stack.enter_context(patch.multiple(module, OPTIONS=options, **mine))
            yield

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

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
        launch = super().launcher(rule, table, index, device, dtype, control, observed)

        def launch_changed() -> None:
            with self._changed():
                launch()

        return launch_changed


def contestant(name: str, backend: Backend, formats: Formats = PLAIN) -> Contestant:
    """AdaMod on ``backend``, under ``name``."""
    make = partial(Tuned, backend=backend, formats=formats)
    return Contestant(name, "adamod_fused", make, backend.refuses, ours=True, formats=formats)
