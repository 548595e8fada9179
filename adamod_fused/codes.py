"""States in one or two bytes an element, and their random bits, in pure PyTorch: the oracle.

Integer operation for integer operation what csrc/engine/codes.h and random_bits.h do; those say
why. Tensors of 32-bit patterns are int64 here, since torch has few operations on unsigned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

BLOCK = 32
"""Elements that share an exponent."""

CODE_DTYPES = {1: torch.uint8, 2: torch.int16}
"""What holds the codes of one and of two bytes."""

_INF = 0x7F800000
_WORD = 0xFFFFFFFF


class Values(Enum):
    """What a rule says of a state's values; csrc/rules/values.h."""

    OF_BOTH_SIGNS = 0
    SAFE_TOO_LARGE = 1
    SAFE_TOO_SMALL = 2


def _float(patterns: Tensor) -> Tensor:
    return patterns.to(torch.int32).view(torch.float32)


@dataclass(frozen=True)
class Code:
    """How values of a kind are coded in ``num_bytes`` bytes."""

    values: Values
    num_bytes: int

    @property
    def is_signed(self) -> bool:
        return self.values is Values.OF_BOTH_SIGNS

    @property
    def bits(self) -> int:
        if self.num_bytes == 2:
            return 16
        return {Values.OF_BOTH_SIGNS: 7, Values.SAFE_TOO_LARGE: 9, Values.SAFE_TOO_SMALL: 8}[
            self.values
        ]

    @property
    def shift(self) -> int:
        """Bits of a float32 that a code leaves out."""
        if self.num_bytes == 2:
            return 23 - 11
        return (
            23
            - {Values.OF_BOTH_SIGNS: 3, Values.SAFE_TOO_LARGE: 6, Values.SAFE_TOO_SMALL: 4}[
                self.values
            ]
        )

    @property
    def top(self) -> int:
        """The code of the largest finite value; those of inf and NaN follow."""
        return (1 << (self.bits - self.is_signed)) - 3

    def exponents(self, x: Tensor) -> Tensor:
        """The exponent of each block of ``x``, float32 ``[blocks, BLOCK]``: int64 ``[blocks, 1]``.

        What fills up the last block is to be 0.
        """
        magnitude = x.view(torch.int32).to(torch.int64) & 0x7FFFFFFF
        counts = (magnitude < _INF) & (magnitude != 0)
        if self.values is Values.SAFE_TOO_SMALL:
            rank = torch.where(counts, _INF - magnitude, 0).amax(1, keepdim=True)
            return torch.where(rank == 0, 1, (_INF - rank) >> 23).clamp(min=1)
        rank = torch.where(counts, magnitude, 0).amax(1, keepdim=True)
        above = rank + (1 << self.shift) - 1 - (self.top << self.shift)
        return ((above >> 23) + 1).clamp(min=1)

    def encode(self, x: Tensor, exponents: Tensor, random: Tensor) -> Tensor:
        """The codes of float32 ``x``, rounded by 32 random bits: int64."""
        pattern = x.view(torch.int32).to(torch.int64) & _WORD
        magnitude = pattern & 0x7FFFFFFF
        base = exponents << 23
        code = ((magnitude - base + (random >> (32 - self.shift))) >> self.shift) + 1
        if self.is_signed:
            threshold = (random >> 8).float() * 2.0**-24
            rounds_up = _float(magnitude) > threshold * _float(base)
            code = torch.where(magnitude < base, rounds_up.to(torch.int64), code)
        else:
            code = torch.where(magnitude == 0, 0, code.clamp(min=1))
        code = code.clamp(max=self.top)
        code = torch.where(magnitude == _INF, self.top + 1, code)
        code = torch.where(magnitude > _INF, self.top + 2, code)
        if self.is_signed:
            has_sign = (code != 0) & (code != self.top + 2)
            code = code | torch.where(has_sign, pattern >> 31 << (self.bits - 1), 0)
        return code

    def decode(self, code: Tensor, exponents: Tensor) -> Tensor:
        """What codes, int64, stand for: float32."""
        magnitude = code & ((1 << (self.bits - 1)) - 1) if self.is_signed else code
        pattern = ((exponents << 23) + ((magnitude - 1) << self.shift)) & _WORD
        pattern = torch.where(magnitude == 0, 0, pattern)
        pattern = torch.where(magnitude == self.top + 1, _INF, pattern)
        pattern = torch.where(magnitude == self.top + 2, 0x7FC00000, pattern)
        if self.is_signed:
            pattern = pattern | (code >> (self.bits - 1) << 31)
        return _float(pattern)


def _in_blocks(flat: Tensor) -> Tensor:
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def num_blocks(numel: int) -> int:
    """Of ``numel`` elements; the last may be short."""
    return -(-numel // BLOCK)


def encode(
    kinds: Sequence[Values], num_bytes: int, states: Sequence[Tensor], random: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Codes a parameter's states.

    Args:
        kinds: of each state.
        num_bytes: 1 or 2, of each code.
        states: float32 ``[numel]`` each, in the order in which they lie in memory.
        random: 32 random bits for each element of each state, int64 ``[numel]``.

    Returns:
        The codes, of ``CODE_DTYPES[num_bytes]`` and ``[numel]`` each, and the exponents, uint8
        ``[blocks, len(states)]``.
    """
    coded, exponents = [], []
    for kind, state, bits in zip(kinds, states, random, strict=True):
        code = Code(kind, num_bytes)
        blocks = _in_blocks(state)
        exponents.append(code.exponents(blocks))
        coded.append(code.encode(blocks, exponents[-1], _in_blocks(bits)).flatten()[: len(state)])
    if num_bytes == 1:
        for k, kind in enumerate(kinds):
            if kind is Values.SAFE_TOO_LARGE:  # nine bits: the state before it lends one
                coded[k - 1] = coded[k - 1] | (coded[k] >> 8 << 7)
                coded[k] = coded[k] & 0xFF
    return [c.to(CODE_DTYPES[num_bytes]) for c in coded], torch.cat(exponents, 1).to(torch.uint8)


def decode(kinds: Sequence[Values], coded: Sequence[Tensor], exponents: Tensor) -> list[Tensor]:
    """What ``encode`` made codes of, rounded: float32 ``[numel]`` each."""
    num_bytes = coded[0].dtype.itemsize
    codes = [c.to(torch.int64) & ((1 << (8 * num_bytes)) - 1) for c in coded]
    if num_bytes == 1:
        for k, kind in enumerate(kinds):
            if kind is Values.SAFE_TOO_LARGE:
                codes[k] = codes[k] | (codes[k - 1] >> 7 << 8)
                codes[k - 1] = codes[k - 1] & 0x7F
    return [
        Code(kind, num_bytes)
        .decode(_in_blocks(code), exponents[:, k : k + 1].to(torch.int64))
        .flatten()[: len(code)]
        for k, (kind, code) in enumerate(zip(kinds, codes, strict=True))
    ]


NUM_STREAMS = 4
PARAM_STREAM = 3
_WEYL = (0x9E3779B9, 0x6A09E667, 0xBB67AE85, 0x4D8400FD)


def _times(x: Tensor, factor: int) -> Tensor:
    """The lower 32 bits of a product, in halves: int64 would overflow."""
    return ((x & 0xFFFF) * factor + (((x >> 16) * factor & 0xFFFF) << 16)) & _WORD


def random_bits(indices: Tensor, key: int, step: int, stream: int) -> Tensor:
    """32 random bits for each element; csrc/engine/random_bits.h.

    Args:
        indices: of the elements in their whole tensor, int64.
        key: 64 bits, of the tensor.
        step: the number of this step; the first is 1.
        stream: 0 to ``NUM_STREAMS`` - 1.
    """
    h = (_times(indices & _WORD, 0x9E3779B1) + (key & _WORD)) & _WORD
    h = _times(h ^ (h >> 16), 0x21F0AAAD)
    h = (h + _times(indices >> 32, 0x85EBCA6B) + (key >> 32 & _WORD)) & _WORD
    h = _times(h ^ (h >> 15), 0x735A2D97)
    h = h ^ (h >> 15)
    if stream == PARAM_STREAM:
        h = _times(h ^ (h >> 16), 0x2C1B3C6D)
        h = h ^ (h >> 15)
    elif stream > 0:
        h = (h & 0x00FFFFFF) | (h << (32 - 8 * stream) & 0xFF000000)
    return (h + step * _WEYL[stream]) & _WORD


def key_of(seed: int, ordinal: int) -> int:
    """64 bits for the tensor that is number ``ordinal`` of an optimizer: splitmix64."""
    mask = 0xFFFFFFFFFFFFFFFF
    z = (seed * 0xD1B54A32D192ED03 + (ordinal + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def split(weights: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as its nearest bfloat16 (halves away from zero) and what that lacks, int16."""
    pattern = weights.view(torch.int32).to(torch.int64) & _WORD
    pattern = torch.where(weights.isnan(), 0x7FC00000, pattern)
    upper = (pattern + 0x8000) >> 16
    remainder = pattern - (upper << 16)
    return upper.to(torch.int16).view(torch.bfloat16), remainder.to(torch.int16)


def joined(params: Tensor, remainders: Tensor) -> Tensor:
    """The float32 weights that ``split`` took apart."""
    pattern = (params.view(torch.int16).to(torch.int64) << 16) + remainders.to(torch.int64)
    return _float(pattern)


def stochastically_rounded(weights: Tensor, random: Tensor) -> Tensor:
    """float32 rounded up or down to bfloat16 by random bits; inf and NaN stay."""
    pattern = weights.view(torch.int32).to(torch.int64) & _WORD
    finite = (pattern & 0x7FFFFFFF) < _INF
    pattern = torch.where(weights.isnan(), 0x7FC00000, pattern)
    pattern = pattern + torch.where(finite, random >> 16, 0)
    return (pattern >> 16).to(torch.int16).view(torch.bfloat16)
