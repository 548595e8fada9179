"""The facts that a reader of figures must know: machine, versions, commit and date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from adamod_fused import doctor

FOLDER = Path(__file__).resolve().parent  # in the repository, if that is one
SOFTWARE = ("adamod_fused", "python", "system", "torch", "triton", "CUDA")
GIB = 1 << 30


@dataclass(frozen=True)
class Origin:
    """What records of one purpose begin with."""

    schema: int
    date: str
    commit: str | None
    machine: dict[str, str | int | float | None]
    versions: dict[str, str]


def machine(device: torch.device) -> dict[str, str | int | float | None]:
    """Hardware, without names of hosts or users; what is of a GPU is None on a CPU."""
    facts: dict[str, str | int | float | None] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction_sets": doctor.versions()["CPU instruction set"],
        "load": round(os.getloadavg()[0], 2),  # of others, if this is asked before any work
        "huge_pages": _huge_pages(),
        "memory_GiB": round(_meminfo("MemTotal") / GIB, 1),
    }
    gpu = dict.fromkeys(("gpu", "compute_capability", "gpu_memory_GiB", "gpu_L2_MiB", "driver"))
    if device.type != "cuda":
        return facts | gpu
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_GiB": round(properties.total_memory / GIB, 1),
        "gpu_L2_MiB": round(properties.L2_cache_size / (1 << 20), 1),
        "driver": _output(
            "nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"
        ),
    }


def _huge_pages() -> str | None:
    """Whether the system gives them always, where they are asked for (madvise), or never."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not path.exists():
        return None
    return path.read_text().partition("[")[2].partition("]")[0]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of the software that runs here and of the distributions ``packages`` that are installed."""
    found = {name: version for name, version in doctor.versions().items() if name in SOFTWARE}
    for package in packages:
        if package not in found:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "unknown"  # on the path, but not installed by pip
    return found


def commit() -> str | None:
    """Ends in -dirty where the files are not those of the commit; None outside a repository."""
    return _output("git", "describe", "--always", "--abbrev=40", "--dirty")


def date() -> str:
    """Now, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def available_memory() -> int:
    """Bytes of main memory that may be taken without swapping."""
    return _meminfo("MemAvailable")


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found, f"/proc/meminfo has no {name}"
    return int(found[1]) * 1024


def _cpu_name() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else os.uname().machine


def _output(*command: str) -> str | None:
    """What a command prints, None when it fails or prints nothing."""
    try:
        result = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (result.returncode == 0 and result.stdout.strip()) or None
