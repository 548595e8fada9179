"""The compiled parts, looked for in one place: table and CPU engine, and the CUDA engine."""

from __future__ import annotations

import importlib
from typing import Any

from .base import Status


def _load(name: str, remedy: str) -> tuple[Any, Status]:
    try:
        return importlib.import_module(f"adamod_fused.{name}"), Status(True)
    except ImportError as error:
        return None, Status(False, f"{name} is not built or does not load ({error})", remedy)


core, core_status = _load(
    "_C", "install the package with pip, which compiles it: pip install . in the source tree"
)
cuda, cuda_status = _load(
    "_cuda",
    "install with nvcc on PATH or CUDA_HOME set: "
    "ADAMOD_CUDA=1 pip install --force-reinstall --no-deps . in the source tree",
)
