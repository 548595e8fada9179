"""State dicts with anything changed in them: refused with a clear error, or loaded as they say.

A dict that is refused changes nothing. One that is accepted leaves an optimizer that has the
values of the dict and steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from budget import budget, check_clear, spend
from foreign_state_dicts import adam, authors, pytorch_optimizer
from helpers import STATES, Snapshot, assert_same_bits, params_of, set_random_grads
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor, nn
from values import random_values

from adamod_fused import AdaMod, checkpoint

StateDict = dict[str, Any]

SHAPES = ((3, 4), (33,), ())
GONE = object()


def nested(depth: int) -> list:
    made: list = []
    for _ in range(depth):
        made = [made]
    return made


# Each is called anew: no mutation may leak into the next example.
ANYTHING: dict[str, Callable[[], Any]] = {
    "gone": lambda: GONE,
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "3.0": lambda: 3.0,
    "2**24": lambda: 2.0**24,
    "10**400": lambda: 10**400,
    "-10**5000": lambda: -(10**5000),
    "inf": lambda: math.inf,
    "nan": lambda: math.nan,
    "complex": lambda: 1j,
    "text": lambda: "text",
    "bytes": lambda: b"text",
    "fraction": lambda: Fraction(1, 3),
    "numpy": lambda: np.float32(0.5),
    "array": lambda: np.ones(3),
    "empty list": list,
    "empty dict": dict,
    "empty tuple": tuple,
    "set": lambda: {1},
    "list": lambda: [0, 1, 2],
    "nested": lambda: nested(10),
    "deep": lambda: nested(5000),
    "dict": lambda: {"step": 1},
    "object": object,
    "class": lambda: dict,
    "0-dim": lambda: torch.tensor(2.0),
    "0-dim int": lambda: torch.tensor(2),
    "0-dim nan": lambda: torch.tensor(math.nan),
    "0-dim -1": lambda: torch.tensor(-1.0),
    "two": lambda: torch.ones(2),
    "none": lambda: torch.ones(0),
    "float64": lambda: torch.full((3, 4), 0.5, dtype=torch.float64),
    "float32": lambda: torch.full((33,), 0.25),
    "bfloat16": lambda: torch.full((3, 4), 0.5, dtype=torch.bfloat16),
    "int16": lambda: torch.full((3, 4), 7, dtype=torch.int16),
    "int32": lambda: torch.full((33,), 7, dtype=torch.int32),
    "int32 far": lambda: torch.full((3, 4), 2**30, dtype=torch.int32),
    "bool": lambda: torch.ones(3, 4, dtype=torch.bool),
    "complex64": lambda: torch.ones(3, 4, dtype=torch.complex64),
    "inf values": lambda: torch.full((3, 4), math.inf),
    "nan values": lambda: torch.full((33,), math.nan),
    "huge values": lambda: torch.full((3, 4), 1e300, dtype=torch.float64),
    "sparse": lambda: torch.eye(3, 4).to_sparse(),
    "meta": lambda: torch.ones(3, 4, device="meta"),
    "expanded": lambda: torch.ones(1, 1).expand(3, 4),
    "transposed": lambda: torch.ones(4, 3).t(),
    "negated": lambda: torch.ones(3, 4, dtype=torch.complex64).conj().imag,
    "needs grad": lambda: torch.ones(3, 4, requires_grad=True),
    "parameter": lambda: nn.Parameter(torch.ones(33)),
    "freed": lambda: freed(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8),
}


def freed() -> Tensor:
    tensor = torch.ones(3, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Paths to everything in nested dicts and lists."""
    found = [at] if at else []
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*at, key))
    elif isinstance(value, (list, tuple)) and len(at) < 4:
        for i, inner in enumerate(value):
            found += places(inner, (*at, i))
    return found


def changed(value: Any, path: tuple, new: Any) -> Any:
    """A copy of the containers along ``path``, with ``new`` at its end."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    made = list(value) if isinstance(value, (list, tuple)) else dict(value)
    if not rest and new is GONE:
        del made[key]
    else:
        made[key] = changed(made[key], rest, new)
    return tuple(made) if isinstance(value, tuple) else made


@st.composite
def mutations(draw: st.DrawFn, original: StateDict) -> StateDict:
    mutated = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        paths = places(mutated)
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        if draw(st.integers(0, 7)) == 0:  # another key in its place
            key = draw(st.sampled_from([0, 1, 7, "exp_avg", "step", "lr", "new", None, (1,), -1]))
            path = (*path[:-1], key) if isinstance(path[-1], str) else path
        what = draw(st.sampled_from(sorted(ANYTHING)))
        if what == "freed" and len(path) < 3:  # torch itself reads a number's memory
            what = "float32"
        note(f"{path}: {what}")
        try:
            mutated = changed(mutated, path, ANYTHING[what]())
        except (KeyError, IndexError):
            continue
    return mutated


def make(dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> AdaMod:
    params = [nn.Parameter(random_values(s, seed + i).to(dtype)) for i, s in enumerate(SHAPES)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.03}]
    return AdaMod(groups, lr=0.1, beta3=0.9, betas=(0.8, 0.9), min_coded_numel=0, **options)


KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "16bit": (torch.float16, {"state_format": "16bit"}),
    "8bit-split": (torch.bfloat16, {"state_format": "8bit", "weight_format": "split"}),
    "reference": (torch.float32, {"backend": "reference"}),
}


def trained(kind: str, steps: int, seed: int = 0) -> AdaMod:
    dtype, options = KINDS[kind]
    optimizer = make(dtype, seed, **options)
    for step in range(steps):
        set_random_grads(params_of(optimizer), step)
        optimizer.step()
    return optimizer


def refusal(do: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What it returns, or the error, which must be a clear one."""
    try:
        return do(), None
    except (TypeError, ValueError, RuntimeError) as error:
        raised = error
    check_clear(raised)
    return None, raised


def check_it_works(optimizer: AdaMod) -> None:
    """It steps as its copy does on the reference."""
    set_random_grads(params_of(optimizer), 99)
    optimizer.step()
    assert optimizer.state_dict()["state"].keys() >= {0, 1, 2}


def check_values(optimizer: AdaMod, given: StateDict) -> None:
    """fp32 states are those of the dict, bit for bit."""
    made = optimizer.state_dict()
    keys = [key for group in given["param_groups"] for key in group["params"]]
    for number, key in enumerate(keys):
        saved = given["state"].get(key)
        if not saved:
            continue
        loaded = made["state"][number]
        assert float(loaded["step"]) == float(saved["step"])
        for name in STATES:
            assert_same_bits(loaded[name], saved[name].detach().to(loaded[name].dtype), name)
    for group, saved in zip(made["param_groups"], given["param_groups"], strict=True):
        for name in ("lr", "betas", "beta3", "eps", "weight_decay", "variant", "maximize"):
            assert group[name] == saved[name] or group[name] is saved[name]


@pytest.mark.parametrize("kind", KINDS)
def test_load_state_dict(kind: str) -> None:
    original = trained(kind, 2).state_dict()

    @budget(120)
    @given(mutations(original), st.integers(0, 1))
    def run(mutated: StateDict, steps: int) -> None:
        target = trained(kind, steps, seed=7)
        before = Snapshot(target)
        _, error = refusal(lambda: target.load_state_dict(mutated))
        if error is not None:
            note(repr(error))
            before.assert_unchanged()
        elif kind in ("fp32", "reference"):
            check_values(target, mutated)
        check_it_works(target)

    spend(run)


FOREIGN = {
    "torch": adam,
    "authors": authors,
    "pytorch_optimizer": pytorch_optimizer,
    "torch_optimizer": authors,
}


@pytest.mark.parametrize("source", FOREIGN)
def test_convert(source: str) -> None:
    original = FOREIGN[source]()
    sizes = [len(group["params"]) for group in original["param_groups"]]
    shapes = {"torch": [(3,)]}.get(source, [(3,), (2, 1), (1,)])

    @budget(80)
    @given(mutations(original))
    def run(mutated: StateDict) -> None:
        converted, error = refusal(lambda: checkpoint.convert(mutated, source, beta3=0.9))
        if error is not None:
            note(repr(error))
            return
        params = iter([nn.Parameter(torch.ones(shape)) for shape in shapes])
        target = AdaMod([{"params": [next(params) for _ in range(size)]} for size in sizes])
        _, error = refusal(lambda: target.load_state_dict(converted))
        if error is None:
            set_random_grads(params_of(target), 0)
            target.step()

    spend(run)


@pytest.mark.parametrize(
    "to",
    [
        lambda given: checkpoint.export(given),
        lambda given: checkpoint.convert_format(given, state_format="8bit"),
        lambda given: checkpoint.convert_format(given, state_format="fp32", weight_format="split"),
        lambda given: checkpoint.from_tensors(*checkpoint.to_tensors(given)),
    ],
    ids=["export", "convert_format 8bit", "convert_format split", "to_tensors"],
)
def test_other_forms(to: Callable[[StateDict], Any]) -> None:
    original = trained("8bit-split", 2).state_dict()

    @budget(80)
    @given(mutations(original))
    def run(mutated: StateDict) -> None:
        _, error = refusal(lambda: to(mutated))
        if error is not None:
            note(repr(error))

    spend(run)
