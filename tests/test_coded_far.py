"""Elements far into a tensor: their codes, exponents and random bits are those of their index."""

from __future__ import annotations

import pytest
import torch
from helpers import OPTIONS, STATES, assert_same_bits
from twins import GPU, on_each_backend

from adamod_fused import AdaMod, codes
from adamod_fused.formats import EXPONENTS, STATE_FORMATS
from adamod_fused.optimizer import KEYWORDS
from adamod_fused.reference import Coded, step_

STEPS = 2
PART = 32 * 1000


def check_parts(backend: str, device: torch.device, numel: int, state_format: str) -> None:
    """Steps one bfloat16 tensor; the oracle steps parts of it, told where they begin."""
    generator = torch.Generator(device).manual_seed(10)
    param, grad = (torch.empty(numel, dtype=torch.bfloat16, device=device) for _ in range(2))
    param = torch.nn.Parameter(param.normal_(generator=generator))
    formats = {"state_format": state_format, "weight_format": "stochastic"}
    optimizer = AdaMod([param], **(OPTIONS | formats), backend=backend)
    rule, key = optimizer.rule, codes.key_of(seed=0, ordinal=0)
    options = {name: value for name, value in OPTIONS.items() if name not in KEYWORDS}
    dtype = codes.CODE_DTYPES[STATE_FORMATS[state_format]]

    starts = [s // codes.BLOCK * codes.BLOCK for s in (0, numel // 2, numel - PART // 2)]
    parts = []
    for start in starts:
        part = param.detach()[start : start + PART].cpu()
        states = [torch.zeros(len(part), dtype=dtype) for _ in STATES]
        exponents = torch.ones(codes.num_blocks(len(part)), len(STATES), dtype=torch.uint8)
        parts.append((start, part, states, exponents))

    for step in range(1, STEPS + 1):
        param.grad = grad.normal_(generator=generator)
        optimizer.step()
        for start, part, states, exponents in parts:
            coded = Coded(exponents, None, start, key, rounds_at_random=True)
            its_grad = grad[start : start + PART].cpu()
            step_(rule, rule.prepare(step, **options), part, its_grad, states, coded=coded)

    entries = optimizer.state[param]
    for start, part, states, exponents in parts:
        end = start + len(part)
        assert_same_bits(param[start:end].cpu(), part, f"parameter from {start}")
        for name, state in zip(STATES, states, strict=True):
            assert_same_bits(entries[name][start:end].cpu(), state, f"{name} from {start}")
        blocks = slice(start // codes.BLOCK, codes.num_blocks(end))
        assert_same_bits(entries[EXPONENTS][blocks].cpu(), exponents, f"exponents from {start}")


@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_parts_of_a_tensor(state_format: str, backend: str) -> None:
    check_parts(backend, torch.device("cpu"), 100_003, state_format)


@pytest.mark.gpu
@on_each_backend
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_more_elements_than_32_bits_count(state_format: str, backend: str) -> None:
    numel = 2**32 + 100_003  # indices in their whole tensor go beyond 32 bits too
    needed = numel * (2 + 2 + 3 * STATE_FORMATS[state_format] + 1) + 2**30
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory, here are {free >> 30}")
    check_parts(backend, GPU, numel, state_format)
