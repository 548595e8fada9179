"""The choice of backend: which ones work here, and which one serves a tensor.

``None`` takes the fastest that works and serves the tensor; a name obeys or raises. The pure
PyTorch reference serves everything, so it is what remains, with one warning, where nothing else
does.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..validation import is_plain
from .base import Backend, Status
from .cpu import CpuBackend
from .cuda import CudaBackend
from .triton import TritonBackend

__all__ = ["NAMES", "Backend", "Status", "available", "choose", "coder"]

# Fastest first.
_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CudaBackend(), TritonBackend(), CpuBackend())
}
NAMES = (*_BACKENDS, "reference")

_warned: set[tuple[str, torch.dtype]] = set()


def available() -> dict[str, Status]:
    """Every backend by name, the fastest first, the reference last.

    Returns:
        For each a ``Status``: ``available``, and where it is False the ``reason`` why it does not
        work on this machine and the ``remedy``, both as text for people.
    """
    return {name: backend.status() for name, backend in _BACKENDS.items()} | {
        "reference": Status(True)
    }


def choose(name: str | None, param: Tensor, *, fused: bool = False) -> Backend | None:
    """The backend for a parameter; None stands for the reference, which ``fused`` rules out.

    Raises:
        ValueError: ``name`` is no backend, or the one named does not serve such a tensor.
        RuntimeError: the one named does not work on this machine; ``fused``, and no kernel serves
            such a tensor.
    """
    if name is None:
        return _fastest(param, fused)
    if name == "reference":
        return None
    if name not in _BACKENDS:
        listed = ", ".join(repr(known) for known in NAMES)
        raise ValueError(f"backend must be None or one of {listed}, got {name!r}")
    backend = _BACKENDS[name]
    status = backend.status()
    if not status.available:
        raise RuntimeError(
            f"backend {name!r} does not work here: {status.reason}. Remedy: {status.remedy}; or "
            "backend=None takes the fastest that works"
        )
    refusal = _refusal(backend, param)
    if refusal is not None:
        raise ValueError(
            f"backend {name!r} cannot serve a {param.dtype} tensor on {param.device}: {refusal}; "
            "backend=None takes one that can"
        )
    return backend


def coder(tensor: Tensor) -> Backend | None:
    """The backend that codes states on the device of ``tensor``; None stands for ``codes.py``."""
    for backend in _BACKENDS.values():
        refused = not is_plain(tensor) or backend.refuses(tensor.device, torch.float32)
        if not refused and backend.status().available:
            return backend
    return None


def _refusal(backend: Backend, param: Tensor) -> str | None:
    if not is_plain(param):
        return f"kernels read plain tensors, not {type(param).__name__}"
    return backend.refuses(param.device, param.dtype)


def _fastest(param: Tensor, fused: bool) -> Backend | None:
    device, dtype = param.device, param.dtype
    reasons = []
    for backend in _BACKENDS.values():
        refusal = _refusal(backend, param)
        if refusal is None:
            status = backend.status()
            if status.available:
                return backend
            refusal = f"{status.reason}; {status.remedy}"
        reasons.append(f"{backend.name}: {refusal}")
    if fused:
        raise RuntimeError(
            f"fused=True: no kernel serves {dtype} tensors on {device} ({' | '.join(reasons)}); "
            "leave fused out, and the slow pure-PyTorch reference steps them"
        )
    if (device.type, dtype) not in _warned:
        _warned.add((device.type, dtype))
        warnings.warn(
            f"adamod_fused steps {dtype} tensors on {device.type} with the slow pure-PyTorch "
            f"reference, because no kernel serves them ({' | '.join(reasons)}); "
            "backend='reference' silences this",
            stacklevel=2,
        )
    return None
