"""Bad input: a clear error before anything is touched. One table for the class and the function.

A case spoils one thing of an optimizer that has stepped once, or of the arguments of the function.
The parameters that come before the bad one are good, so an error that came too late would show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bad_input_settings import SETTINGS, SHAPES, WHO, ClassSetting, FunctionSetting
from helpers import OPTIONS, STATES, Snapshot, assert_same_bits, random_params, set_random_grads
from torch import Tensor, nn

from adamod_fused import AdaMod


@dataclass
class Case:
    """``spoil`` makes a setting bad; ``{who}`` in the message stands for the parameter."""

    description: str
    spoil: Callable[[Any], None]
    error: type[Exception]
    message: str
    settings: tuple[str, ...] = ("class", "function")
    backends: tuple[str, ...] = ("cpu", "reference")


def option(name: str, value: Any, error: type[Exception], message: str) -> Case:
    return Case(f"{name} {value!r}", lambda s: s.set_option(name, value), error, message)


def grad(description: str, make: Callable[[Tensor], Any], error: type, message: str) -> Case:
    return Case(f"gradient {description}", lambda s: s.set_grad(make(s.bad)), error, message)


def param(description: str, value: Tensor, error: type[Exception], message: str) -> Case:
    return Case(f"parameter {description}", lambda s: s.set_param(value.clone()), error, message)


def state(name: str, value: Any, error: type[Exception], message: str) -> Case:
    description = f"{name} {type(value).__name__}"
    if isinstance(value, Tensor):
        description += f" {value.dtype} {value.layout} {tuple(value.shape)} {value.device}"
        description += f" {value.item()}" if value.numel() == 1 else ""
    return Case(description, lambda s: s.set_state(name, value), error, message)


def same_twice(s: FunctionSetting) -> None:
    s.params[2] = s.params[1]
    for tensors in (s.grads, *s.states.values()):
        tensors[2] = tensors[1].clone()


def one_less(name: str) -> Callable[[FunctionSetting], None]:
    def spoil(s: FunctionSetting) -> None:
        (s.grads if name == "grads" else s.states[name]).pop()

    return spoil


def not_a_tensor(name: str, value: Any) -> Callable[[FunctionSetting], None]:
    def spoil(s: FunctionSetting) -> None:
        {"params": s.params, "grads": s.grads, **s.states}[name][1] = value

    return spoil


def remove_state(s: ClassSetting) -> None:
    del s.optimizer.state[s.bad]["exp_avg_sq"]


NUMBERS = ("lr", "eps", "weight_decay")
OUT_OF_RANGE = (-1e-3, -math.inf, math.inf, math.nan)
META = torch.ones(2, 3, device="meta")

CASES = [
    # Hyperparameters
    *(
        option(name, value, ValueError, rf"{name} must be finite and >= 0, got {value}")
        for name in NUMBERS
        for value in OUT_OF_RANGE
    ),
    *(
        option("beta3", value, ValueError, rf"beta3 must lie in \[0, 1\), got {value}")
        for value in (-0.1, 1.0, 1.5, math.nan, math.inf)
    ),
    *(
        option("betas", betas, ValueError, rf"beta{which} must lie in \[0, 1\), got {value}")
        for betas, which, value in (
            ((1.0, 0.9), 1, 1.0),
            ((-0.5, 0.9), 1, -0.5),
            ((math.nan, 0.9), 1, math.nan),
            ((0.9, 1.0), 2, 1.0),
            ((0.9, math.inf), 2, math.inf),
        )
    ),
    *(
        option(name, value, TypeError, f"{name} must be a number, got ")
        for name in (*NUMBERS, "beta3")
        for value in ("0.5", b"0.5", None, 0.5 + 0j, [0.5], torch.ones(2))
    ),
    option("betas", ("0.5", 0.9), TypeError, "beta1 must be a number, got '0.5'"),
    option("betas", (0.5, None), TypeError, "beta2 must be a number, got None"),
    option("lr", torch.tensor(-0.5), ValueError, r"lr must be .* >= 0, got tensor\(-0\.5"),
    option("variant", "nature", ValueError, "variant must be one of 'paper', 'released', got 'na"),
    option("variant", None, ValueError, "variant must be one of 'paper', 'released', got None"),
    option("maximize", 2, TypeError, "maximize must be True or False, got 2"),
    option("maximize", None, TypeError, "maximize must be True or False, got None"),
    *(
        Case(
            f"betas {betas!r}",
            lambda s, betas=betas: s.set_option("betas", betas),
            ValueError,
            r"betas must be two numbers, \(beta1, beta2\), got ",
            ("class",),
        )
        for betas in (0.9, (0.9,), (0.9, 0.99, 0.999), "99", None)
    ),
    # The backend
    option("backend", "fpga", ValueError, "backend must be .*'cpu', 'reference'.*got 'fpga'"),
    option("backend", 3, ValueError, "backend must be .* got 3"),
    # Parameters
    param("complex", torch.ones(3, dtype=torch.cfloat), TypeError, "{who} is complex .*view_as_"),
    param("integer", torch.arange(3), TypeError, "{who} has dtype torch.int64.*convert it"),
    param("boolean", torch.ones(3).bool(), TypeError, "{who} has dtype torch.bool.*convert it"),
    param(
        "of 8 bits",
        torch.ones(3).to(torch.float8_e4m3fn),
        TypeError,
        "{who} has dtype torch.float8_e4m3fn.*convert it",
    ),
    Case(
        "parameter expanded",
        lambda s: s.set_param(torch.ones(1).expand(4)),
        ValueError,
        r"{who} has elements that share memory .*\(4,\), strides \(0,\).*contiguous",
    ),
    # Gradients
    grad("sparse", lambda p: torch.ones_like(p).to_sparse(), RuntimeError, "{who} .*sparse=False"),
    Case(
        "gradient of CSR",
        lambda s: s.set_grad(torch.ones(2, 3).to_sparse_csr()),
        RuntimeError,
        "{who} .*to_dense",
        ("function",),  # torch lets no such gradient be assigned
    ),
    grad("double", lambda p: torch.ones_like(p).double(), TypeError, "{who} .*float64.*float32"),
    grad("bf16", lambda p: torch.ones_like(p).bfloat16(), TypeError, "{who} .*bfloat16.*grad.to"),
    grad("integer", lambda p: torch.ones_like(p).long(), TypeError, "{who} .*int64.*float32"),
    grad("complex", lambda p: torch.ones_like(p).cfloat(), TypeError, "{who} .*complex64"),
    grad("transposed", lambda p: torch.ones(3, 2), ValueError, r"{who} .*\(3, 2\).*\(2, 3\)"),
    grad("flat", lambda p: torch.ones(6), ValueError, r"{who} has shape \(6,\), .*\(2, 3\)"),
    grad("scalar", lambda p: torch.ones(()), ValueError, r"{who} has shape \(\), .*\(2, 3\)"),
    grad("empty", lambda p: torch.ones(0), ValueError, r"{who} has shape \(0,\), .*\(2, 3\)"),
    Case(
        "gradient on another device",
        lambda s: s.set_grad(META),
        ValueError,
        "{who} is on meta, the parameter on cpu; move the gradient",
        ("function",),  # torch lets no such gradient be assigned
    ),
    # States
    *(
        case
        for name in STATES
        for case in (
            state(name, torch.ones(3, 2), ValueError, name + r" of {who} has shape \(3, 2\), "),
            state(name, torch.ones(2, 3).double(), TypeError, name + " of {who} .*float64"),
            state(name, torch.ones(2, 3).half(), TypeError, name + " of {who} .*float16"),
            state(name, torch.ones(2, 3).long(), TypeError, name + " of {who} .*int64"),
            state(name, torch.ones(2, 3).to_sparse(), TypeError, name + " of {who} .*sparse"),
            state(name, META, ValueError, name + " of {who} is on meta, the parameter on cpu"),
            state(name, torch.ones(1, 1).expand(2, 3), ValueError, name + " of {who} .*share mem"),
            state(name, None, TypeError, "must be a tensor, got None"),
        )
    ),
    state("step", torch.tensor(-1.0), ValueError, r"step of {who} must lie in \[0, .*-1"),
    state("step", torch.tensor(math.nan), ValueError, "step of {who} must lie .*nan"),
    state("step", torch.tensor(1e30), ValueError, "step of {who} must lie .*e.30"),
    state("step", torch.tensor(1.0).double(), TypeError, "step of {who} must be a 0-dim float32"),
    state("step", torch.ones(1), TypeError, "step of {who} must be a 0-dim float32"),
    state("step", torch.ones(2), TypeError, "step of {who} must be a number"),
    Case(
        "state missing",
        remove_state,
        ValueError,
        "the state of {who} lacks exp_avg_sq .*it has step, exp_avg, exp_avg_lr",
        ("class",),
    ),
    # The function's lists
    *(
        Case(
            f"{label} too short",
            one_less(name),
            ValueError,
            f"{label} has 2 tensors, params 3",
            ("function",),
        )
        for name, label in (
            ("grads", "grads"),
            ("exp_avg", "exp_avgs"),
            ("exp_avg_sq", "exp_avg_sqs"),
            ("exp_avg_lr", "exp_avg_lrs"),
            ("step", "state_steps"),
        )
    ),
    *(
        Case(
            f"{name} holds {value!r}",
            not_a_tensor(name, value),
            TypeError,
            rf"{label}\[1\] must be a tensor, got {value!r}",
            ("function",),
        )
        for name, label in (("params", "params"), ("grads", "grads"), ("step", "state_steps"))
        for value in (None, 3)
    ),
    Case("a tensor twice", same_twice, ValueError, "twice", ("function",)),
]


@pytest.mark.parametrize(
    ("case", "setting", "backend"),
    [
        pytest.param(case, setting, backend, id=f"{case.description}-{setting}-{backend}")
        for case in CASES
        for setting in case.settings
        for backend in case.backends
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_bad_input_is_an_error_that_changes_nothing(case: Case, setting: str, backend: str) -> None:
    spoiled = SETTINGS[setting](backend)
    case.spoil(spoiled)
    assert_unchanged = spoiled.snapshot()
    with pytest.raises(case.error, match=case.message.replace("{who}", spoiled.who)):
        spoiled.run()
    assert_unchanged()


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.description.split()[0] in (*OPTIONS, "backend")],
    ids=lambda case: case.description,
)
def test_bad_hyperparameters_are_refused_by_the_constructor(case: Case, backend: str) -> None:
    given: dict[str, Any] = {**OPTIONS, "backend": backend}

    class Recorder:
        def set_option(self, name: str, value: Any) -> None:
            given[name] = value

    case.spoil(Recorder())
    with pytest.raises(case.error, match=case.message):
        AdaMod(random_params(*SHAPES), **given)


@pytest.mark.parametrize("as_group", [False, True])
@pytest.mark.parametrize(
    ("param", "error", "message"),
    [
        (nn.Parameter(torch.ones(3, dtype=torch.cfloat)), TypeError, "complex .*view_as_real"),
        (torch.arange(3), TypeError, "has dtype torch.int64; only torch.float32, .*convert it"),
        (torch.ones(1).expand(4), ValueError, "share memory .*contiguous"),
        (torch.ones(3).to_sparse(), TypeError, "layout torch.sparse_coo; .*to_dense"),
        (torch.complex(torch.ones(()), torch.ones(())).conj().imag, ValueError, "resolve_neg"),
        (3.0, TypeError, "float"),
    ],
    ids=["complex", "integer", "expanded", "sparse", "negated", "no tensor"],
)
def test_bad_parameters_are_refused_by_the_constructor(
    param: Any, error: type[Exception], message: str, as_group: bool
) -> None:
    good = random_params((3,))
    with pytest.raises(error, match=message):
        AdaMod([{"params": good}, {"params": [param]}] if as_group else [*good, param], **OPTIONS)


def test_a_parameter_that_becomes_a_lazily_negated_view(backend: str) -> None:
    s = ClassSetting(backend)
    s.bad.data = torch._neg_view(s.bad.detach().clone())
    before = s.bad.detach().clone()
    with pytest.raises(ValueError, match=f"{WHO} is a lazily negated view; .*resolve_neg"):
        s.run()
    assert torch.equal(s.bad, before)


@pytest.mark.parametrize("which", ["param", "grad", "exp_avg_sq"])
def test_freed_memory_is_not_read(which: str, backend: str) -> None:
    """Sharded training frees storages and gives them back; a step in between would crash."""
    s = ClassSetting(backend)
    tensors = {"param": s.bad, "grad": s.bad.grad, **s.optimizer.state[s.bad]}
    others = [param.detach().clone() for param in s.params[:2]]
    tensors[which].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=rf"{WHO} has 6 elements and no memory"):
        s.run()
    for param, before in zip(s.params, others, strict=False):
        assert_same_bits(param, before)


def test_a_parameters_state_that_is_no_dict(backend: str) -> None:
    s = ClassSetting(backend)
    s.optimizer.state[s.bad] = 3
    with pytest.raises(TypeError, match=rf"the state of {WHO} must be a dict, got 3"):
        s.run()


def test_no_parameters() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        AdaMod([], **OPTIONS)


def test_first_step_with_a_bad_gradient_makes_no_states() -> None:
    params = random_params(*SHAPES)
    set_random_grads(params, 0)
    params[2].grad = torch.ones(2, 3).to_sparse()
    optimizer = AdaMod(params, **OPTIONS)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    before.assert_unchanged()
    assert not optimizer.state


def test_errors_do_not_outlive_their_cause() -> None:
    """After an error the optimizer steps on as if nothing had been."""
    spoiled, twin = ClassSetting("cpu"), ClassSetting("cpu")
    good = spoiled.bad.grad
    spoiled.bad.grad = good.to_sparse()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="sparse"):
            spoiled.run()
    spoiled.bad.grad = good
    spoiled.run()
    twin.run()
    for a, b in zip(spoiled.params, twin.params, strict=True):
        assert_same_bits(a, b)
