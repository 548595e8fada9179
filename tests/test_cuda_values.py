"""The CUDA engine's conversions of states, run on the host: the bits of codes.py."""

from __future__ import annotations

import pytest
import torch
from coded_values import KINDS, KINDS_OF_RULES, encoded, values_of
from helpers import assert_same_bits
from triton_rows import Guarded

from adamod_fused import codes
from adamod_fused.backends.base import addresses_of
from adamod_fused.coding import VALUE_DTYPES

SIZES = (1, 31, 32, 33, 255, 256, 257, 1000)  # about a block, and what a block of threads takes

each_width = pytest.mark.parametrize("num_bytes", [1, 2])


@each_width
@pytest.mark.parametrize("kinds", KINDS_OF_RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_the_oracles(engine, runtime, kinds, num_bytes, dtype):
    for numel in SIZES:
        values = [values_of(kind, numel, k).to(dtype) for k, kind in enumerate(kinds)]
        coded, exponents = encoded(kinds, num_bytes, [value.float() for value in values])
        given = [Guarded(value, numel % 3) for value in values]
        made = [Guarded(torch.zeros_like(c), numel % 5) for c in coded]
        made_exponents = Guarded(torch.zeros_like(exponents).flatten(), 1)
        shared = made_exponents.tensor.view(exponents.shape)
        states = addresses_of(kinds, [m.tensor for m in made], shared, [g.tensor for g in given])
        launches = runtime.emulation_launches()
        engine.encode(str(dtype)[6:], *states, 0, 0)
        runtime.emulation_synchronize()
        made_exponents.assert_equal(exponents.flatten(), f"exponents of {numel}")
        for k in range(len(kinds)):
            made[k].assert_equal(coded[k], f"codes {k} of {numel}")

        room = torch.zeros(numel, dtype=VALUE_DTYPES[coded[0].dtype])
        found = [Guarded(room, numel % 3) for _ in kinds]
        states = addresses_of(kinds, coded, exponents, [f.tensor for f in found])
        engine.decode(*states, 0, 0)
        runtime.emulation_synchronize()
        assert runtime.emulation_launches() == launches + 2
        for k, wanted in enumerate(codes.decode(kinds, coded, exponents)):
            assert_same_bits(found[k].tensor.float(), wanted, f"values {k} of {numel}")
            found[k].assert_equal(found[k].tensor.clone(), "around them")


def test_no_elements_are_no_launch(engine, runtime):
    launches = runtime.emulation_launches()
    engine.decode([0], 1, [0], 0, [0], 0, 0, 0)
    engine.encode("float32", [0], 1, [0], 0, [0], 0, 0, 0)
    assert runtime.emulation_launches() == launches


def test_another_device_is_selected_and_left_again(engine, runtime):
    coded, exponents = encoded(KINDS, 1, [torch.ones(40)] * 3)
    found = [torch.zeros(40, dtype=torch.bfloat16) for _ in KINDS]
    engine.decode(*addresses_of(KINDS, coded, exponents, found), 1, 0)
    runtime.emulation_synchronize()
    assert all((value == 1).all() for value in found)
    assert (runtime.emulation_launch_device(), runtime.emulation_current_device()) == (1, 0)


def test_cuda_errors_say_what_was_attempted(engine, runtime):
    message = r"cudaErrorInvalidDevice: .* \(decoding states, device 5, 7 elements\)"
    with pytest.raises(RuntimeError, match=message):
        engine.decode([0], 1, [0], 0, [0], 7, 5, 0)


@pytest.mark.parametrize(
    ("dtype", "kinds", "num_bytes", "numel", "message"),
    [
        ("float64", [0], 1, 1, "float32 or bfloat16, got float64"),
        ("float32", [1], 1, 1, "no state before it"),
        ("float32", [0], 4, 1, "takes 1 or 2 bytes, got 4"),
        ("float32", [0], 1, 2**40, "got 1099511627776: split the tensor"),
    ],
)
def test_bad_arguments(engine, dtype, kinds, num_bytes, numel, message):
    with pytest.raises(ValueError, match=message):
        engine.encode(dtype, kinds, num_bytes, [0], 0, [0], numel, 0, 0)


@pytest.mark.gpu
@each_width
def test_a_gpu_has_the_oracles_bits(num_bytes):
    """By whatever backend serves it, in several slices and in none."""
    from adamod_fused import coding

    for numel in (*SIZES, coding.LONG_SLICE + 77):
        values = [values_of(kind, numel, k) for k, kind in enumerate(KINDS)]
        coded, exponents = encoded(KINDS, num_bytes, values)
        made = [torch.empty_like(c, device="cuda") for c in coded]
        made_exponents = torch.empty_like(exponents, device="cuda")
        coding.encode(KINDS, [value.cuda() for value in values], made, made_exponents)
        assert torch.equal(made_exponents.cpu(), exponents)
        assert all(torch.equal(m.cpu(), c) for m, c in zip(made, coded, strict=True))
        found = [torch.empty_like(m, dtype=VALUE_DTYPES[m.dtype]) for m in made]
        coding.decode(KINDS, made, made_exponents, found)
        for f, wanted in zip(found, codes.decode(KINDS, coded, exponents), strict=True):
            assert_same_bits(f.float().cpu(), wanted, "values")
