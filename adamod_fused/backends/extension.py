"""The compiled parts, looked for in one place: table and CPU engine, and the CUDA engine."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .base import Status

P = ParamSpec("P")
R = TypeVar("R")


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


def in_float_environment(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, with the calling thread in the engine's floating-point environment.

    See csrc/engine/float_environment.h. Operators of torch's on many elements run on other threads
    too, which keep what is set there.
    """
    if core is None:
        return function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = core.in_float_environment(function, *args, **kwargs)
        return result

    return call
