"""What this machine has for `make gpu`: what is missing, with the remedy, and facts to record."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent  # in the repository, if that is one

REQUIRED = {"torch": "2.6", "pip": "21", "setuptools": "77", "pytest": "8", "numpy": "1"}
OPTIONAL = ("triton", "pybind11", "ninja", "matplotlib")
HOW_TO_CARRY = """
Without a network, a package can be carried: where there is one,
    python3 -m pip download --no-deps --only-binary=:all: -d wheels NAME
(for another Python or platform with --python-version and --platform), then here
    python3 -m pip install --no-index --no-deps --target SOMEWHERE wheels/*.whl
and PYTHONPATH=SOMEWHERE make gpu."""


def version(name):
    """The version of a package, None where it cannot be imported."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # on the path, but not installed by pip


def versions():
    return {name: version(name) for name in (*REQUIRED, *OPTIONAL)}


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def output(*command):
    """What a command prints, "" when it fails."""
    try:
        result = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def find_nvcc():
    cuda_home = os.environ.get("CUDA_HOME")
    return (cuda_home and shutil.which("nvcc", path=f"{cuda_home}/bin")) or shutil.which("nvcc")


def torch_folder():
    return Path(importlib.util.find_spec("torch").origin).parent


def what_is_missing(versions):
    """One line, with the remedy, for each thing without which nothing can run."""
    if sys.version_info < (3, 11):
        yield f"Python 3.11 or newer (PYTHONSAFEPATH); {sys.executable} is {sys.version.split()[0]}"
    for name, least in REQUIRED.items():
        found = versions[name]
        if found is None:
            yield f"{name}: {sys.executable} has none"
        elif found != "unknown" and numbers(found) < numbers(least):
            yield f"{name} {least} or newer: {sys.executable} has {found}"
    if not find_nvcc():
        yield "nvcc: put the CUDA toolkit's bin folder on PATH, or set CUDA_HOME"
    if not versions["ninja"] and not shutil.which("ninja"):
        yield "ninja: the Python package, or the program on PATH"
    if not shutil.which(os.environ.get("CXX", "c++").split()[0]):
        yield "a C++ compiler: c++ on PATH, or one named in CXX"
    if versions["torch"]:
        if not versions["pybind11"] and not (torch_folder() / "include" / "pybind11").exists():
            yield "pybind11: the Python package (this torch does not carry its headers)"
        import torch

        if not torch.cuda.is_available():
            yield f"a GPU: torch.cuda.is_available() is False (torch {torch.__version__})"


def facts(versions, commit):
    """What a reader of the record must know about the machine and the sources."""
    import torch

    device = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # Ends in -dirty where the files are not those of the commit; None outside a repository.
        "commit": commit or output("git", "describe", "--always", "--abbrev=40", "--dirty") or None,
        "gpu": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": "".join(re.findall(r"V([\d.]+)", output(find_nvcc(), "--version"))),
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
    }
