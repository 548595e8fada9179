"""Training with coded states and split weights ends where training in float32 does."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import OPTIONS, assert_same_bits

from adamod_fused import AdaMod
from bench.format_training import TASKS, final_losses, permutation_test

SEEDS = range(5)
# Of a loss whose model has learnt nothing: that of guessing.
GUESSING = {"Transformer": math.log(256), "convolutional": math.log(4)}
STEPS = {"Transformer": 60, "convolutional": 80}


@pytest.mark.parametrize("name", TASKS)
def test_final_loss_is_within_the_spread_of_seeds(name: str) -> None:
    losses = final_losses(TASKS[name](), SEEDS, STEPS[name])
    for state_format, found in losses.items():
        assert max(found) < 0.75 * GUESSING[name], (state_format, found)
        assert permutation_test(losses["fp32"], found) > 0.05, losses
    assert losses["8bit"] != losses["fp32"], "the format was not used"
    assert losses["16bit"] != losses["fp32"], "the format was not used"


def test_permutation_test_knows_a_difference() -> None:
    assert permutation_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == 2 / 252
    assert permutation_test([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == 1
    assert 0.1 < permutation_test([1.0, 2.0, 3.0, 4.0, 5.0], [2.1, 3.2, 3.9, 5.1, 5.9]) < 0.6


@pytest.mark.parametrize("state_format", ["fp32", "16bit", "8bit"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_split_weights_are_those_of_a_float32_parameter(backend: str, state_format: str) -> None:
    """Bit for bit, from initial weights that bfloat16 has, under the same gradients."""
    shape = (70, 61)
    generator = torch.Generator().manual_seed(4)
    initial = torch.randn(shape, generator=generator).bfloat16()
    narrow, wide = torch.nn.Parameter(initial.clone()), torch.nn.Parameter(initial.float())
    formats = {"state_format": state_format, "min_coded_numel": 0, "backend": backend}
    split = AdaMod([narrow], **OPTIONS, **formats, weight_format="split")
    plain = AdaMod([wide], **OPTIONS, **formats)
    moved = 0
    for _ in range(30):
        grad = torch.randn(shape, generator=generator).bfloat16()
        narrow.grad, wide.grad = grad, grad.float()
        split.step()
        plain.step()
        remainder = split.state[narrow]["param_remainder"]
        pattern = (narrow.detach().view(torch.int16).int() << 16) + remainder.int()
        assert_same_bits(pattern.view(torch.float32), wide.detach(), "weights")
        assert (narrow.float() - wide).abs().max() <= wide.abs().max() * 2.0**-8
        moved += int((remainder != 0).sum())
    assert moved > 0, "no weight ever lay between two of bfloat16"
