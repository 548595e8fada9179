"""Builds the extension modules; pyproject.toml describes the rest of the package.

adamod_fused._C     the tensor table and the CPU engine, always.
adamod_fused._cuda  the CUDA engine, where there is an NVIDIA driver and nvcc (CUDA_HOME or PATH).

ADAMOD_CUDA=1            builds the CUDA engine or fails, ADAMOD_CUDA=0 leaves it out.
ADAMOD_CUDA_ARCHS=80;90  compute capabilities to compile it for, instead of DEFAULT_ARCHS.
CXX, CXXFLAGS, LDFLAGS   the C++ compiler, and flags added to ours.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

DEFAULT_ARCHS = ["75", "80", "86", "89", "90", "100", "120"]

# No contraction, no fast-math, no flush of subnormals: the backends agree bit for bit.
# -forward-unknown-to-host-compiler: LDFLAGS may hold -Wl, which nvcc does not know.
NINJA_RULES = """
cxx_flags = -std=c++17 -O3 -DNDEBUG -fPIC -pthread -fvisibility=hidden -Wall -Wextra $
  -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd
nvcc_flags = -std=c++17 -O3 -DNDEBUG --threads 0 -Xcompiler -fPIC,-fvisibility=hidden $
  --fmad=false -prec-div=true -prec-sqrt=true -ftz=false
rule cxx
  command = $cxx $cxx_flags $includes $cxxflags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $nvcc_flags $gencode -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link_cxx
  command = $cxx -shared -pthread $cxxflags $in -o $out $ldflags
rule link_nvcc
  command = $nvcc -shared -cudart static -forward-unknown-to-host-compiler $in -o $out $ldflags
"""


def find_nvcc():
    cuda_home = os.environ.get("CUDA_HOME")
    return (cuda_home and shutil.which("nvcc", path=f"{cuda_home}/bin")) or shutil.which("nvcc")


def has_driver():
    """Whether this machine has an NVIDIA driver: pip's build isolation hides torch, which knows."""
    return Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))


def find_ninja():
    try:
        from ninja import BIN_DIR as folder
    except ImportError:  # offline, the program may be there without its package
        folder = ""
    ninja = shutil.which("ninja", path=folder) or shutil.which("ninja")
    if not ninja:
        raise SetupError("there is no ninja, which runs the compilers: pip install ninja")
    return ninja


def gencode_flags(nvcc):
    """Machine code for each architecture, and PTX of the newest for those still to come."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = re.findall(r"compute_(\w+)", listed.stdout)
    asked = os.environ.get("ADAMOD_CUDA_ARCHS", "").strip()
    archs = re.split(r"[;,\s]+", asked) if asked else [a for a in DEFAULT_ARCHS if a in known]
    if not archs or not set(archs) <= set(known):
        raise SetupError(
            f"ADAMOD_CUDA_ARCHS must list architectures that {nvcc} knows ({';'.join(known)}),"
            f" for example 80;90, got {asked!r} {listed.stderr}"
        )
    newest = max(archs, key=lambda arch: int(re.match(r"\d+", arch)[0]))
    codes = [(arch, f"sm_{arch}") for arch in archs] + [(newest, f"compute_{newest}")]
    return " ".join(f"-gencode arch=compute_{arch},code={code}" for arch, code in codes)


def ninja_variables(nvcc):
    """What the rules leave open."""
    includes = [sysconfig.get_path("include")]
    try:
        import pybind11

        includes.append(pybind11.get_include())
    except ImportError:  # offline, the headers may be there without the package
        print("setup.py: no package pybind11, so the compiler must find its headers (CPATH)")
    yield "includes", " ".join(f"-isystem {shlex.quote(path)}" for path in includes)
    yield "cxx", os.environ.get("CXX") or "c++"
    yield "cxxflags", os.environ.get("CXXFLAGS", "")
    yield "ldflags", os.environ.get("LDFLAGS", "")
    if nvcc:
        yield "nvcc", shlex.quote(nvcc)
        yield "gencode", gencode_flags(nvcc)


def ninja_path(path):
    """``path`` as a ninja file names it: "$" escapes what would end it."""
    if set(str(path)) & set("|\r\n"):
        raise SetupError(f"a ninja file cannot name {str(path)!r}: take another --build-base")
    return re.sub(r"[$ :]", r"$\g<0>", str(path))


class BuildWithNinja(build_ext):
    """Writes one ninja file for all modules and runs it."""

    def run(self):
        if CUDA_MODULE not in self.extensions:  # one left by an earlier build would be imported
            Path(self.get_ext_fullpath(CUDA_MODULE.name)).unlink(missing_ok=True)
        super().run()

    def build_extensions(self):
        nvcc = find_nvcc() if CUDA_MODULE in self.extensions else None
        if CUDA_MODULE in self.extensions and not nvcc:
            raise SetupError(
                "ADAMOD_CUDA=1 builds the CUDA engine, but nvcc is neither in CUDA_HOME/bin nor"
                " on PATH: set CUDA_HOME to a CUDA toolkit (12.1 or newer), or ADAMOD_CUDA=0"
            )
        # Not build_temp: an editable install makes that anew each time, and every object with it.
        build_base = self.get_finalized_command("build").build_base
        parts = "the CPU and CUDA engines" if nvcc else "the CPU engine without CUDA"
        print(
            f"building {parts}; ADAMOD_CUDA=1 builds the CUDA engine, ADAMOD_CUDA=0 leaves it out"
        )
        folder = Path(build_base, f"ninja-{sys.implementation.cache_tag}")
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{k} = {v.replace('$', '$$')}" for k, v in ninja_variables(nvcc)]
        lines += [f"builddir = {ninja_path(folder)}", NINJA_RULES]
        modules = [(e, folder / Path(self.get_ext_filename(e.name)).name) for e in self.extensions]
        for extension, module in modules:
            objects = {s: ninja_path(folder / f"{s}.o") for s in extension.sources}
            compilers = {s: "nvcc" if s.endswith(".cu") else "cxx" for s in extension.sources}
            lines += [f"build {objects[s]}: {compiler} {s}" for s, compiler in compilers.items()]
            linker = "nvcc" if "nvcc" in compilers.values() else "cxx"
            lines.append(f"build {ninja_path(module)}: link_{linker} {' '.join(objects.values())}")
        Path(folder, "build.ninja").write_bytes(os.fsencode("\n".join(lines) + "\n"))

        if subprocess.run([find_ninja(), "-f", f"{folder}/build.ninja"]).returncode:
            remedy = "; ADAMOD_CUDA=0 builds without the CUDA engine" if nvcc else ""
            raise CompileError(f"the build failed, the compiler's message is above{remedy}")
        for extension, module in modules:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(module, target)


SOURCES = sorted(str(p) for p in Path("csrc").rglob("*") if p.suffix in (".cpp", ".cu"))
CUDA_SOURCES = [s for s in SOURCES if s.endswith(".cu") or s == "csrc/bindings/cuda.cpp"]
CUDA_MODULE = Extension("adamod_fused._cuda", CUDA_SOURCES)
CORE_MODULE = Extension("adamod_fused._C", [s for s in SOURCES if s not in CUDA_SOURCES])
ADAMOD_CUDA = os.environ.get("ADAMOD_CUDA") or ("1" if has_driver() and find_nvcc() else "0")
if ADAMOD_CUDA not in ("0", "1"):
    raise SystemExit(f"ADAMOD_CUDA must be 0 or 1, or not set, got {ADAMOD_CUDA!r}")

setup(
    # triton_kernels is also the name of a package of Triton's own: never install it at top level.
    packages=[*find_packages(include=["adamod_fused*"]), "adamod_fused.triton_kernels"],
    package_dir={"adamod_fused.triton_kernels": "triton_kernels"},
    ext_modules=[CORE_MODULE, CUDA_MODULE] if ADAMOD_CUDA == "1" else [CORE_MODULE],
    cmdclass={"build_ext": BuildWithNinja},
)
