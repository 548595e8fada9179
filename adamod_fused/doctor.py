"""``python -m adamod_fused doctor``: which backends work here, and what to do about the others."""

from __future__ import annotations

import argparse
import platform

import torch

from . import __version__, backends, formats
from .backends.cpu import CpuBackend
from .console import open_console
from .extras import installed, version_of

DESCRIPTION = (
    "Say which backends work on this machine and, for each that does not, why and what to do; "
    "then the formats of states and weights, and the versions that a bug report needs."
)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declares ``doctor``, which has no options."""
    parser = commands.add_parser(
        "doctor",
        help="which backends work here, and what to do about the others",
        description=DESCRIPTION,
    )
    parser.set_defaults(main=main)


def main(_: argparse.Namespace) -> int:
    """Prints all tables. A backend that does not work here is a fact, not an error: returns 0."""
    console = open_console()
    rows = []
    for name, status in backends.available().items():
        remark = "" if status.available else f"{status.reason}. Remedy: {status.remedy}"
        rows.append((name, "yes" if status.available else "no", remark))
    console.table(("backend", "works", "if not, why"), rows)
    console.table(("keyword", "one of"), list(storage().items()))
    console.table(("part", "here"), list(versions().items()))
    return 0


def storage() -> dict[str, str]:
    """The formats that states and weights can be kept in, and which parameters are."""
    least = formats.DEFAULTS["min_coded_numel"]
    return {
        "state_format": ", ".join(formats.STATE_FORMATS),
        "weight_format": f"{', '.join(formats.WEIGHT_FORMATS)} (all but plain: bfloat16)",
        "min_coded_numel": f"{least:,} unless given: of fewer elements, states stay fp32",
    }


def versions() -> dict[str, str]:
    """Software and hardware that decide what works and how fast."""
    return {
        "adamod_fused": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "triton": _triton(),
        "CUDA": f"{torch.version.cuda} (of torch)" if torch.version.cuda else "torch without CUDA",
        "GPU": _gpus(),
        "CPU": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "CPU instruction set": _instruction_set(),
    }


def _triton() -> str:
    if not installed("triton"):
        return "not installed"
    return version_of("triton") or "of unknown version"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})")
    return ", ".join(names)


def _instruction_set() -> str:
    torchs = f"{torch.backends.cpu.get_cpu_capability().lower()} (torch)"
    cpu = CpuBackend()
    return f"{cpu.instruction_set} (adamod_fused), {torchs}" if cpu.status().available else torchs
