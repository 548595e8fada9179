"""Builds the CUDA engine as the trials want it: one extension module for each, in parallel."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from ..extension import import_extension
from ..machine_code import ENGINE, ROOT, compile_engine, nvcc_flags, output, tool, usage
from .declared import Trial


class Built(NamedTuple):
    """The engine of one trial, and the registers of its kernels by storage and table."""

    module: ModuleType
    registers: dict[str, int]


def tuning(trial: Trial) -> str:
    """The C++ that makes the trial's changes: ADAMOD_TUNING in csrc/engine/cuda_tuning.h."""
    return " ".join(f"t.{name} = {str(to).lower()};" for name, to in trial.changes.items())


def build(
    trials: Sequence[Trial], arch: str, folder: Path, jobs: int | None = None
) -> dict[str, Built | str]:
    """The engine of every trial by name; where it does not build, the compiler's words.

    Raises:
        FileNotFoundError: there is no nvcc.
        RuntimeError: not even what is the same in all of them compiles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bindings = folder / "bindings.o"
    with ThreadPoolExecutor(jobs) as pool:
        shared = pool.submit(_compile_bindings, bindings)
        sources = sorted(path.name for path in ENGINE.glob("*.cu"))
        compiled = [
            [pool.submit(_compile, source, trial, arch, folder) for source in sources]
            for trial in trials
        ]
        shared.result()
        objects = [[future.result() for future in futures] for futures in compiled]
        built = pool.map(partial(_link, bindings=bindings), objects)
        return dict(zip((trial.name for trial in trials), built, strict=True))


class _Object(NamedTuple):
    path: Path
    messages: str
    failure: str


def _compile(source: str, trial: Trial, arch: str, folder: Path) -> _Object:
    own = folder / trial.name.replace(",", "").replace(" ", "-")
    own.mkdir(exist_ok=True)
    path = (own / source).with_suffix(".o")
    try:
        return _Object(path, compile_engine(path, [arch], tuning(trial), source), "")
    except RuntimeError as error:
        return _Object(path, "", str(error))


def _compile_bindings(target: Path) -> None:
    includes = [f"-I{path}" for path in (sysconfig.get_path("include"), _pybind11())]
    source = ROOT / "csrc" / "bindings" / "cuda.cpp"
    output(tool("nvcc"), *nvcc_flags(), *includes, "-c", source, "-o", target)


def _pybind11() -> str:
    try:
        import pybind11
    except ImportError:  # torch carries the headers
        return str(Path(torch.__file__).parent / "include")
    return pybind11.get_include()


def _link(compiled: Sequence[_Object], bindings: Path) -> Built | str:
    failure = next((part.failure for part in compiled if part.failure), None)
    if failure is not None:
        return failure
    objects = [part.path for part in compiled]
    module = objects[0].with_name(f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}")
    kind = ("-shared", "-cudart", "static")
    try:
        output(tool("nvcc"), *kind, *objects, bindings, "-o", module)
        return Built(import_extension(module), _registers("".join(p.messages for p in compiled)))
    except (RuntimeError, ImportError) as error:
        return str(error)


def _registers(messages: str) -> dict[str, int]:
    return {
        f"{kernel.storage} by {kernel.table}": used.registers
        for (_, kernel), used in usage(messages).items()
        if kernel.name == "step"
    }
