"""What ``torch.set_default_device`` and ``torch.set_default_dtype`` must not change: anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import OPTIONS, assert_same_bits, assert_same_training, random_params, train

import adamod_fused
from adamod_fused import AdaMod

PACKAGE = Path(adamod_fused.__file__).parent
FOLDERS = (PACKAGE, PACKAGE.parent / "triton_kernels")

FLOATS = {"empty", "empty_permuted", "empty_strided", "eye", "full", "linspace", "logspace", "ones"}
FLOATS |= {"rand", "randn", "scalar_tensor", "zeros"}
"""Those that make floating point numbers of the default dtype, if not told otherwise."""
FACTORIES = FLOATS | {"arange", "as_tensor", "asarray", "randint", "randperm", "range", "tensor"}
FACTORIES |= {"tril_indices", "triu_indices"}


def factory_calls() -> Iterator[tuple[str, str, set[str | None]]]:
    """Where torch's factories are called, their names and the keywords that they are given."""
    for path in sorted(file for folder in FOLDERS for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            module, name = node.func.value, node.func.attr
            if isinstance(module, ast.Name) and module.id == "torch" and name in FACTORIES:
                keywords = {keyword.arg for keyword in node.keywords}
                yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno}", name, keywords


def test_every_tensor_is_made_on_a_named_device_and_of_a_named_dtype() -> None:
    calls = list(factory_calls())
    assert len(calls) > 20
    assert [where for where, _, given in calls if "device" not in given] == []
    assert [where for where, name, given in calls if name in FLOATS and "dtype" not in given] == []


@pytest.fixture
def other_defaults() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.device("meta"):
        yield
    torch.set_default_dtype(before)


def trained(options: dict[str, Any], backend: str) -> tuple[AdaMod, list[Any]]:
    with torch.device("cpu"):
        params = random_params((3, 4), (5,), (0,), dtype=torch.bfloat16)
    optimizer = AdaMod(params, **OPTIONS, **options, backend=backend, track_bound=2)
    assert optimizer.clip_grad_norm_(1.0) == 0  # of no gradients
    optimizer.zero_grad()
    train(optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    norm = optimizer.clip_grad_norm_(0.1)
    optimizer.step()
    optimizer.check_finite()
    return optimizer, [norm, optimizer.bound_stats()]


@pytest.mark.parametrize(
    "options",
    [{}, {"state_format": "8bit", "weight_format": "split", "min_coded_numel": 0}],
    ids=["plain", "coded"],
)
def test_training_is_the_same_with_other_defaults(
    options: dict[str, Any], backend: str, request: pytest.FixtureRequest
) -> None:
    expected, (norm, rows) = trained(options, backend)
    request.getfixturevalue("other_defaults")
    actual, (actual_norm, actual_rows) = trained(options, backend)
    assert_same_training(actual, expected)
    assert_same_bits(actual_norm, norm)
    assert actual_rows == rows
