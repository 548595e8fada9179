"""Compiles the CUDA engine with g++ against the stand-in for the CUDA runtime beside this file."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

EMULATION = Path(__file__).resolve().parent
CSRC = EMULATION.parents[1] / "csrc"

# Contraction is off for the reason it is off in the product: every operation rounds once.
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden"]
# `#pragma unroll` is nvcc's alone.
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ASAN_IS_LOADED = "libasan" in os.environ.get("LD_PRELOAD", "")


def build_emulated_cuda(out_dir: Path, sanitize: bool = ASAN_IS_LOADED, tuning: str = "") -> Path:
    """Build the extension module ``_cuda`` into ``out_dir`` and return its path.

    ``tuning`` is C++ that changes members of ``t``, csrc/engine/cuda_tuning.h.

    With ``sanitize``, a process that imports it has to preload libasan, and libstdc++ after it, or
    libasan finds no ``__cxa_throw`` to pass exceptions on to.
    """
    import pybind11  # here, so that machines without it can still import this file

    module = out_dir / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = map(str, sorted((CSRC / "engine").glob("*.cu")))
    includes = [EMULATION, pybind11.get_include(), sysconfig.get_path("include")]
    command = [
        os.environ.get("CXX", "g++"),
        *FLAGS,
        *WARNINGS,
        *(SANITIZE if sanitize else []),
        f"-DADAMOD_TUNING={tuning}",
        *(f"-isystem{path}" for path in includes),
        *("-x", "c++", *sources, str(CSRC / "bindings" / "cuda.cpp")),
        *("-o", str(module)),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # a sanitizer's, say
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return module
