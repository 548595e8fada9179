"""Anything done to an optimizer in any order: the kernels do what the reference does, or nothing.

Each operation is done to an optimizer on the CPU's kernels and to its twin on the reference. Both
raise the same error and are as they were before it, or both have the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import torch
from budget import budget, check_clear, spend
from helpers import Snapshot, assert_same_bits, assert_same_training, params_of
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn
from values import DTYPES, LAYOUTS, SHAPES, random_values

from adamod_fused import AdaMod, checkpoint

Outcome = tuple[str, Any]

SEEDS = st.integers(0, 2**16)
RATES = st.sampled_from([0.0, 0.5, 0.9, 0.999])
FORMATS = st.fixed_dictionaries(
    {
        "state_format": st.sampled_from(["fp32", "16bit", "8bit"]),
        "weight_format": st.sampled_from(["plain", "plain", "split", "stochastic"]),
        "min_coded_numel": st.sampled_from([0, 4, 40]),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "betas": st.tuples(RATES, RATES),
        "beta3": RATES,
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "variant": st.sampled_from(["paper", "released"]),
        "maximize": st.booleans(),
    }
)
BAD_OPTIONS = st.sampled_from(
    [
        ("lr", -1.0), ("lr", "x"), ("lr", None), ("lr", 10**400), ("lr", torch.ones(2)),
        ("betas", (0.9, 1.0)), ("betas", 0.9), ("betas", (0.9, None)), ("beta3", math.nan),
        ("eps", -1e-8), ("eps", []), ("weight_decay", math.inf), ("variant", "v3"),
        ("variant", ["paper"]), ("maximize", "no"), ("state_format", "4bit"),
        ("state_format", None), ("weight_format", {}), ("min_coded_numel", -1),
        ("min_coded_numel", 1.5), ("seed", -1), ("seed", "x"), ("backend", "tpu"),
        ("fused", "x"), ("differentiable", True),
    ]
)  # fmt: skip


def copied(value: Any) -> Any:
    return copy.deepcopy(value)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Operations(RuleBasedStateMachine):
    """Two optimizers that are to stay alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twins: list[AdaMod] = []
        self.dicts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.tick = 0

    # What is done to both.

    def both(self, operation: Callable[[AdaMod], Any]) -> Outcome:
        """Does it to each; returns what both returned or raised."""
        outcomes = [self.one(optimizer, operation) for optimizer in self.twins]
        (kind, actual), (other_kind, expected) = outcomes
        assert kind == other_kind, outcomes
        if isinstance(actual, Tensor):
            assert_same_bits(actual, expected)
        elif kind == "raised":
            assert actual == expected
        return outcomes[0]

    def one(self, optimizer: AdaMod, operation: Callable[[AdaMod], Any]) -> Outcome:
        before = Snapshot(optimizer)
        try:
            return "returned", operation(optimizer)
        except (TypeError, ValueError, RuntimeError) as error:
            raised = error
        check_clear(raised)
        before.assert_unchanged()
        return "raised", (type(raised), str(raised))

    def params(self, number: int) -> list[nn.Parameter]:
        """The parameter of this number in each optimizer."""
        return [(p := params_of(o))[number % len(p)] for o in self.twins]

    @initialize(seed=SEEDS, options=OPTIONS, how=FORMATS, dtype=st.sampled_from(DTYPES))
    def make(self, seed: int, options: dict, how: dict, dtype: torch.dtype) -> None:
        if dtype is not torch.bfloat16:
            how = how | {"weight_format": "plain"}
        for backend in ("cpu", "reference"):
            made = []
            for i, shape in enumerate(SHAPES[2:7]):
                lay_out = list(LAYOUTS.values())[(seed + i) % len(LAYOUTS)]
                made.append(nn.Parameter(lay_out(random_values(shape, seed + i).to(dtype))))
            groups = [{"params": made[:2]}, {"params": made[2:], "lr": 0.03}]
            self.twins.append(AdaMod(groups, **options, **how, backend=backend))

    @rule(seed=SEEDS, missing=st.integers(0, 7), layout=st.sampled_from(list(LAYOUTS)))
    def step(self, seed: int, missing: int, layout: str) -> None:
        self.give_grads(seed, missing, layout)
        self.both(lambda optimizer: optimizer.step())

    @rule(seed=SEEDS)
    def step_with_extremes(self, seed: int) -> None:
        self.give_grads(seed, 7, "contiguous", extremes=True)
        self.both(lambda optimizer: optimizer.step())

    @rule()
    def step_again(self) -> None:
        self.both(lambda optimizer: optimizer.step())

    def step_now(self) -> None:
        """After a change, so that it is seen; each time with other gradients and layouts."""
        self.tick += 1
        self.both(lambda optimizer: optimizer.zero_grad())  # and with the gradients a clip of them
        self.give_grads(self.tick, self.tick % 11, list(LAYOUTS)[self.tick % len(LAYOUTS)])
        self.both(lambda optimizer: optimizer.step())

    def give_grads(self, seed: int, missing: int, layout: str, extremes: bool = False) -> None:
        for optimizer in self.twins:
            for i, param in enumerate(params_of(optimizer)):
                grad = LAYOUTS[layout](random_values(tuple(param.shape), seed + i, extremes))
                param.grad = None if i == missing else grad.to(param.dtype)

    @rule(
        bound=st.sampled_from([0.0, 0.5, 1e4, math.inf, -1.0, "x"]), seed=SEEDS, step=st.booleans()
    )
    def clip(self, bound: Any, seed: int, step: bool) -> None:
        """A clip holds for the gradients as they were, and then for one step."""

        def clipped() -> str:
            return self.both(lambda optimizer: optimizer.clip_grad_norm_(bound))[0]

        self.give_grads(seed, 7, "contiguous")
        if clipped() == "raised":
            return
        # Not drawn, but each in turn: few of the examples come here.
        for optimizer in self.twins:
            for param in params_of(optimizer):
                param.grad.mul_(0.5)
        assert self.both(lambda optimizer: optimizer.step())[0] == "raised"
        clipped()
        self.give_grads(seed + 1, 7, "contiguous")
        assert self.both(lambda optimizer: optimizer.step())[0] == "raised"
        clipped()
        if step:
            assert self.both(lambda optimizer: optimizer.step())[0] == "returned"

    @rule(scale=st.sampled_from([1.0, 1024.0]), skip=st.booleans(), seed=SEEDS)
    def step_scaled(self, scale: float, skip: bool, seed: int) -> None:
        """As a GradScaler steps."""

        def scaled(optimizer: AdaMod) -> None:
            optimizer.grad_scale, optimizer.found_inf = (
                torch.tensor(scale),
                torch.tensor(float(skip)),
            )
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf

        self.give_grads(seed, 7, "contiguous")
        self.both(scaled)

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self.both(lambda optimizer: optimizer.zero_grad(set_to_none))

    @rule(options=OPTIONS, group=st.integers(0, 3))
    def set_options(self, options: dict, group: int) -> None:
        for optimizer in self.twins:
            optimizer.param_groups[group % len(optimizer.param_groups)].update(options)
        self.step_now()

    @rule(how=FORMATS, group=st.integers(0, 3))
    def set_formats(self, how: dict, group: int) -> None:
        for optimizer in self.twins:
            optimizer.param_groups[group % len(optimizer.param_groups)].update(how)
        self.mend_formats()
        self.step_now()

    @rule(bad=BAD_OPTIONS, group=st.integers(0, 3), seed=SEEDS)
    def try_bad_option(self, bad: tuple[str, Any], group: int, seed: int) -> None:
        name, value = bad
        before = []
        for optimizer in self.twins:
            chosen = optimizer.param_groups[group % len(optimizer.param_groups)]
            before.append((chosen, chosen[name]))
            chosen[name] = value
        self.give_grads(seed, 7, "contiguous")
        kind, _ = self.both(lambda optimizer: optimizer.step())
        assert kind == "raised", bad
        for chosen, old in before:
            chosen[name] = old

    # What is done to tensors.

    @rule(number=st.integers(0, 9), layout=st.sampled_from(list(LAYOUTS)))
    def move(self, number: int, layout: str) -> None:
        """To new memory, which may lie otherwise."""
        for param in self.params(number):
            param.data = LAYOUTS[layout](param.data)
        self.step_now()

    @rule(number=st.integers(0, 9), seed=SEEDS)
    def overwrite(self, number: int, seed: int) -> None:
        for param in self.params(number):
            with torch.no_grad():
                param.copy_(random_values(tuple(param.shape), seed))
        self.step_now()

    @rule(dtype=st.sampled_from(DTYPES))
    def change_dtype(self, dtype: torch.dtype) -> None:
        """As ``model.to(dtype)`` does."""
        for optimizer in self.twins:
            for param in params_of(optimizer):
                param.data = param.data.to(dtype)
                param.grad = None
        self.mend_formats()
        self.step_now()

    def mend_formats(self) -> None:
        """Both raise where float32 and float16 weights are to be split; what then: try_split."""
        for optimizer in self.twins:
            for group in optimizer.param_groups:
                if any(param.dtype is not torch.bfloat16 for param in group["params"]):
                    group["weight_format"] = "plain"

    @rule(seed=SEEDS, how=st.sampled_from(["split", "stochastic"]))
    def try_split(self, seed: int, how: str) -> None:
        """Weights that are no bfloat16 cannot be split."""
        before = [[group["weight_format"] for group in o.param_groups] for o in self.twins]
        for optimizer in self.twins:
            for group in optimizer.param_groups:
                group["weight_format"] = how
        self.give_grads(seed, 7, "contiguous")
        kind, _ = self.both(lambda optimizer: optimizer.step())
        if kind == "raised":
            for optimizer, old in zip(self.twins, before, strict=True):
                for group, weight_format in zip(optimizer.param_groups, old, strict=True):
                    group["weight_format"] = weight_format

    @rule(number=st.integers(0, 9), kind=st.sampled_from(["shape", "dtype", "sparse"]))
    def try_bad_grad(self, number: int, kind: str) -> None:
        for param in self.params(number):
            like = torch.ones_like(param)
            param.grad = like
            if kind == "shape":
                like.data = torch.ones(11, dtype=param.dtype)
            elif kind == "dtype":
                like.data = like.double()
            else:
                param.grad = like.to_sparse() if param.ndim else None
        kind_, _ = self.both(lambda optimizer: optimizer.step())
        assert kind_ == "raised" or kind == "sparse", kind
        for param in self.params(number):
            param.grad = None

    @rule(number=st.integers(0, 9), seed=SEEDS)
    def drop_state(self, number: int, seed: int) -> None:
        for optimizer, param in zip(self.twins, self.params(number), strict=True):
            optimizer.state.pop(param, None)
        self.step_now()

    @rule(shape=st.sampled_from(SHAPES), seed=SEEDS, dtype=st.sampled_from(DTYPES))
    @precondition(lambda self: self.twins and len(self.twins[0].param_groups) < 4)
    def add_group(self, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
        def add(optimizer: AdaMod) -> None:
            new = nn.Parameter(random_values(shape, seed).to(dtype))
            optimizer.add_param_group({"params": [new]})

        self.both(add)
        self.step_now()

    # What is saved, and comes again.

    @rule()
    def save(self) -> None:
        made = [copy.deepcopy(optimizer.state_dict()) for optimizer in self.twins]
        self.dicts.append((made[0], made[1]))

    @rule(number=st.integers(0, 9), swap=st.booleans(), seed=SEEDS)
    @precondition(lambda self: self.dicts)
    def load(self, number: int, swap: bool, seed: int) -> None:
        """Its own, or the twin's: both hold the same."""
        pair = self.dicts[number % len(self.dicts)]
        given = dict(zip(map(id, self.twins), pair[::-1] if swap else pair, strict=True))
        self.both(lambda optimizer: optimizer.load_state_dict(copy.deepcopy(given[id(optimizer)])))
        self.mend_formats()
        self.step_now()

    @rule(how=st.sampled_from([copied, pickled, saved]))
    def replace_by_copy(self, how: Callable[[Any], Any]) -> None:
        for optimizer in self.twins:  # by no means all copies have gradients, and so a clip
            optimizer.zero_grad()
        self.twins = [how(optimizer) for optimizer in self.twins]
        self.step_now()

    @rule(state=st.sampled_from(["fp32", "16bit", "8bit"]))
    def convert_format(self, state: str) -> None:
        def convert(optimizer: AdaMod) -> None:
            made = checkpoint.convert_format(optimizer.state_dict(), state_format=state)
            optimizer.load_state_dict(made)

        self.both(convert)
        self.step_now()

    @rule()
    def through_tensors(self) -> None:
        def convert(optimizer: AdaMod) -> None:
            tensors, metadata = checkpoint.to_tensors(optimizer.state_dict())
            optimizer.load_state_dict(checkpoint.from_tensors(tensors, metadata))

        self.both(convert)
        self.step_now()

    @rule()
    def through_adamw(self) -> None:
        def convert(optimizer: AdaMod) -> None:
            adamw = checkpoint.export(optimizer.state_dict())
            optimizer.load_state_dict(checkpoint.convert(adamw, "torch", optimizer=optimizer))

        self.both(convert)
        self.mend_formats()
        self.step_now()

    # What changes nothing.

    @rule(every=st.integers(0, 3))
    def watch(self, every: int) -> None:
        for optimizer in self.twins:
            optimizer.track_bound(every)

    @rule(look=st.sampled_from(["memory_report", "check_finite", "state_dict", "repr"]))
    def look(self, look: str) -> None:
        for optimizer in self.twins:
            before = Snapshot(optimizer)
            if look == "check_finite":
                with contextlib.suppress(FloatingPointError):
                    optimizer.check_finite()
            elif look == "repr":
                repr(optimizer)
            else:
                getattr(optimizer, look)()
            before.assert_unchanged()

    @invariant()
    def they_are_alike(self) -> None:
        if self.twins:
            assert_same_training(*self.twins)


def test_any_operations_in_any_order() -> None:
    spend(lambda: run_state_machine_as_test(Operations, settings=budget(40, 30)))
