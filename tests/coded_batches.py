"""Batches of coded rows for the CUDA engine on the host, and what they should hold.

The oracle is the reference rule between adamod_fused/codes.py's decode and encode.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from cuda_batches import DTYPES, Batch, Guarded
from helpers import assert_same_bits

from adamod_fused import codes
from adamod_fused.codes import Values
from adamod_fused.reference import AdaMod, stepped

KINDS = (Values.OF_BOTH_SIGNS, Values.SAFE_TOO_LARGE, Values.SAFE_TOO_SMALL)
STATE_BYTES = {"fp32": 4, "16bit": 2, "8bit": 1}

# dtype, state_format, weight_format: all that are coded.
FORMATS = [(dtype, states, "plain") for dtype in DTYPES for states in ("16bit", "8bit")]
FORMATS += [
    ("bfloat16", states, weights) for states in STATE_BYTES for weights in ("split", "stochastic")
]

# Streams of 128-bit accesses; the exponents are the one that has none.
STREAMS = ("param", "grad", *AdaMod.states, "remainder")
EXPONENTS = "exponents"

# The kernel parameter holds 32,764 bytes: 32 rows of scalars, then 96 for a row, and the count.
CODED_ROWS_BY_VALUE = (32764 - 16 - 32 * 4 * len(AdaMod.Scalars._fields)) // 96


def finite_values(numel, dtype, generator):
    """Of all magnitudes that leave every state finite, zeros and subnormals among them."""
    exponent = torch.rand(numel, generator=generator) * 20 - 14
    values = torch.randn(numel, generator=generator) * 10**exponent
    special = torch.tensor([0.0, -0.0, 1e-41, -1e-7])
    chosen = special[torch.randint(len(special), (numel,), generator=generator)]
    rare = torch.rand(numel, generator=generator) < 0.02
    most = 1e4 if dtype is torch.float16 else 1e8
    return torch.where(rare, chosen, values).clamp(-most, most).to(dtype)


class CodedBatch(Batch):
    """Rows with their table, and beside them the values that the oracle says.

    Args:
        formats: dtype, state_format and weight_format.
        offsets: where each of STREAMS starts, in elements after a 64-byte boundary.
        firsts: the first index of each row; ``keys`` likewise.
        values: of gradients and first parameters, by number, dtype and generator.
    """

    def __init__(
        self, engine, formats, sizes, offsets=(0,) * 6, scalar_of_row=None, firsts=None, keys=None,
        values=finite_values, seed=0,
    ):  # fmt: skip
        self.engine, self.offsets, self.values = engine, offsets, values
        self.dtype, self.state_format, self.weight_format = formats
        self.num_bytes = STATE_BYTES[self.state_format]
        self.scalar_of_row = scalar_of_row or [0] * len(sizes)
        self.firsts = firsts or [0] * len(sizes)
        self.keys = keys or [codes.key_of(seed, row) for row in range(len(sizes))]
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = [
            self._tensors(numel, dict(zip(STREAMS, offsets, strict=True))) for numel in sizes
        ]
        self.expected = [
            {name: g.tensor.clone() for name, g in guarded.items()} for guarded in self.tensors
        ]
        chunks = [-(-numel // engine.chunk_size) for numel in sizes]
        first = [0, *accumulate(chunks)]
        self.num_chunks = first.pop()
        names = ("param", "grad", *AdaMod.states)
        self.rows = np.array(
            [
                [*(guarded[name].address for name in names), *rest]
                for guarded, *rest in zip(
                    self.tensors, sizes, first, self.scalar_of_row, strict=True
                )
            ],
            np.int64,
        )

    def _tensors(self, numel, offsets):
        dtype = DTYPES[self.dtype]
        state_dtype = codes.CODE_DTYPES.get(self.num_bytes, torch.float32)
        tensors = {"param": finite_values(numel, dtype, self.generator)}
        tensors["grad"] = self.values(numel, dtype, self.generator)
        tensors |= {name: torch.zeros(numel, dtype=state_dtype) for name in AdaMod.states}
        if self.weight_format == "split":
            tensors["remainder"] = torch.zeros(numel, dtype=torch.int16)
        guarded = {name: Guarded(tensor, offsets[name]) for name, tensor in tensors.items()}
        if self.state_format != "fp32":
            exponents = torch.ones(3 * codes.num_blocks(numel), dtype=torch.uint8)
            guarded[EXPONENTS] = Guarded(exponents, 0)
        return guarded

    def new_grads(self):
        for guarded, expected in zip(self.tensors, self.expected, strict=True):
            grad = guarded["grad"].tensor
            grad.copy_(self.values(grad.numel(), grad.dtype, self.generator))
            expected["grad"] = grad.clone()

    def set(self, row, name, values):
        """Puts values into a tensor, and into what is expected of it."""
        self.tensors[row][name].tensor.copy_(values)
        self.expected[row][name].copy_(values)

    def arguments(self):
        """The keywords of the engine's step that say how rows are coded, and what they point to."""
        coded = np.array(
            [
                [
                    guarded[EXPONENTS].address if EXPONENTS in guarded else 0,
                    guarded["remainder"].address if "remainder" in guarded else 0,
                    first,
                    key,
                ]
                for guarded, first, key in zip(self.tensors, self.firsts, self.keys, strict=True)
            ],
            np.uint64,
        )
        keywords = {"state_format": self.state_format, "weight_format": self.weight_format}
        return keywords | {"coded": coded.ctypes.data}, coded

    def enqueue(self, scalars, device=0, stream=0, control=0):
        """Hand the batch to the engine, in arrays that are gone right afterwards."""
        self.enqueued.append(self)
        rows = self.rows.copy()
        rows_of_scalars = np.array(scalars, np.float32)
        keywords, coded = self.arguments()
        counts = (len(rows_of_scalars), self.num_chunks, device, stream)
        addresses = (rows.ctypes.data, len(rows), rows_of_scalars.ctypes.data)
        self.engine.step("adamod", self.dtype, *addresses, *counts, control, **keywords)
        rows[:] = rows_of_scalars[:] = -1
        coded[:] = 2**64 - 1

    def expect(self, scalars, grad_scale=1.0):
        """Move the expected values on by one step."""
        each = zip(self.expected, self.scalar_of_row, self.firsts, self.keys, strict=True)
        for expected, index, first, key in each:
            self._expect(expected, scalars[index], first, key, grad_scale)

    def _expect(self, tensors, scalars, first, key, grad_scale):
        def random(stream):
            return codes.random_bits(indices, key, int(scalars.step), stream)

        indices = torch.arange(tensors["param"].numel()) + first
        coded = [tensors[name] for name in AdaMod.states]
        weight = tensors["param"].float()
        if self.weight_format == "split":
            weight = codes.joined(tensors["param"], tensors["remainder"])
        if EXPONENTS in tensors:
            states = codes.decode(KINDS, coded, tensors[EXPONENTS].view(-1, 3))
        else:
            states = coded
        grad = tensors["grad"].float() * grad_scale
        weight, *states = stepped(AdaMod, scalars, weight, grad, *states)

        if EXPONENTS in tensors:
            bits = [random(stream) for stream in range(len(states))]
            states, exponents = codes.encode(KINDS, self.num_bytes, states, bits)
            tensors[EXPONENTS] = exponents.flatten()
        tensors |= dict(zip(AdaMod.states, states, strict=True))
        if self.weight_format == "split":
            tensors["param"], tensors["remainder"] = codes.split(weight)
        elif self.weight_format == "stochastic":
            weight = codes.stochastically_rounded(weight, random(codes.PARAM_STREAM))
            tensors["param"] = weight
        else:
            tensors["param"] = weight.to(tensors["param"].dtype)

    def check(self):
        for row, (guarded, expected) in enumerate(zip(self.tensors, self.expected, strict=True)):
            for name, g in guarded.items():
                numel = expected["param"].numel()
                where = f"{name} of row {row}, {numel} elements, offsets {self.offsets}"
                assert_same_bits(g.tensor, expected[name], where)
                assert g.guards_intact(), f"a guard zone of {where}"
