"""The engine's codes.h, random_bits.h and weights.h, compiled alone, on tensors.

The same functions as adamod_fused/codes.py has: patterns and codes are int64 here too.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from adamod_fused.codes import BLOCK, Values

_KIND = (ctypes.c_int, ctypes.c_int, ctypes.c_int64)  # kind, bytes, count
_ARRAY = ctypes.c_void_p
SIGNATURES = {
    "exponents": (*_KIND, _ARRAY, _ARRAY),
    "encode": (*_KIND, _ARRAY, _ARRAY, _ARRAY, _ARRAY),
    "decode": (*_KIND, _ARRAY, _ARRAY, _ARRAY),
    "bits_of": (
        *(ctypes.c_int64, _ARRAY),
        *(ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int),  # key, step, stream
        _ARRAY,
    ),
    "split": (ctypes.c_int64, _ARRAY, _ARRAY, _ARRAY),
    "join": (ctypes.c_int64, _ARRAY, _ARRAY, _ARRAY),
    "round_at_random": (ctypes.c_int64, _ARRAY, _ARRAY, _ARRAY),
}

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def _words(x: Tensor) -> Tensor:
    """The lower 32 bits of int64, in order, alone in memory."""
    return x.to(torch.int32).contiguous()


def _unsigned(x: Tensor) -> Tensor:
    return x.to(torch.int64) & 0xFFFFFFFF


class NativeCodes:
    """Built into ``folder``, with the warnings of a strict compiler as errors."""

    def __init__(self, folder: Path) -> None:
        library = folder / "codes.so"
        source = ROOT / "tests" / "native" / "codes_library.cpp"
        command = ["g++", *FLAGS, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def _call(self, name: str, *arguments: int | Tensor) -> None:
        function = getattr(self._library, name)
        function.argtypes = SIGNATURES[name]
        function(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))

    def exponents(self, kind: Values, num_bytes: int, x: Tensor) -> Tensor:
        found = torch.empty(-(-len(x) // BLOCK), dtype=torch.int32)
        self._call("exponents", kind.value, num_bytes, len(x), x, found)
        return found.to(torch.int64)

    def encode(
        self, kind: Values, num_bytes: int, x: Tensor, exponents: Tensor, random: Tensor
    ) -> Tensor:
        found = torch.empty(len(x), dtype=torch.int32)
        words = (_words(exponents), _words(random))
        self._call("encode", kind.value, num_bytes, len(x), x, *words, found)
        return _unsigned(found)

    def decode(self, kind: Values, num_bytes: int, codes: Tensor, exponents: Tensor) -> Tensor:
        found = torch.empty(len(codes))
        words = (_words(codes), _words(exponents))
        self._call("decode", kind.value, num_bytes, len(codes), *words, found)
        return found

    def random_bits(self, indices: Tensor, key: int, step: int, stream: int) -> Tensor:
        found = torch.empty(len(indices), dtype=torch.int32)
        self._call("bits_of", len(indices), indices, key, step, stream, found)
        return _unsigned(found)

    def split(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        params = torch.empty(len(weights), dtype=torch.bfloat16)
        remainders = torch.empty(len(weights), dtype=torch.int16)
        self._call("split", len(weights), weights, params, remainders)
        return params, remainders

    def joined(self, params: Tensor, remainders: Tensor) -> Tensor:
        found = torch.empty(len(params))
        self._call("join", len(params), params, remainders, found)
        return found

    def stochastically_rounded(self, weights: Tensor, random: Tensor) -> Tensor:
        found = torch.empty(len(weights), dtype=torch.bfloat16)
        self._call("round_at_random", len(weights), weights, _words(random), found)
        return found
