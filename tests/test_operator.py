"""The rules as operators of torch.library: schema, opcheck, and the bits of the class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    OPTIONS,
    STATES,
    assert_same_bits,
    params_of,
    random_params,
    set_random_grads,
    train_step,
)
from torch import Tensor

from adamod_fused import AdaMod, operators, reference
from adamod_fused.compiled import as_operand

SHAPES = ((3, 4), (), (7,), (0,), (2, 3, 4, 5))
operator = torch.ops.adamod_fused.adamod_.default


def arguments(dtype: torch.dtype = torch.float32, **options: Any) -> list[Any]:
    """What the operator takes, by place; fresh tensors, three steps old."""
    params = [param.detach() for param in random_params(*SHAPES, dtype=dtype)]
    set_random_grads(params, 0)
    grads = [param.grad for param in params]
    state_dtype = reference.COMPUTE_DTYPES[dtype]
    states = [[torch.full_like(p, 0.01, dtype=state_dtype) for p in params] for _ in STATES]
    steps = [torch.tensor(3.0) for _ in params]
    for param in params:
        param.grad = None
    hyperparameters = [as_operand(value) for value in {**OPTIONS, **options}.values()]
    return [params, grads, *states, steps, *hyperparameters]


def written(args: list[Any]) -> list[Tensor]:
    return [tensor for i in (0, 2, 3, 4, 5) for tensor in args[i]]


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, backend: str | None) -> None:
    torch.library.opcheck(operator, (*arguments(dtype), backend))


def test_opcheck_sees_a_write_that_the_schema_does_not_declare() -> None:
    """The check above can fail: the same step, its states declared as read only."""
    schema = operators.schema_of(reference.AdaMod).replace("Tensor(a2!)[]", "Tensor[]")
    lying = torch.library.custom_op(
        "adamod_fused_tests::lying_",
        operator,
        mutates_args=("params", "exp_avg_sqs", "exp_avg_lrs", "state_steps"),
        schema=schema,
    )
    with pytest.raises(Exception, match="exp_avgs is not defined as mutable"):
        torch.library.opcheck(lying, tuple(arguments()), test_utils="test_schema")


def test_the_schema_comes_from_the_rule() -> None:
    class Momentum:
        states = ("momentum_buffer",)

        @classmethod
        def prepare(cls, step: int, *, lr: float, betas: tuple[float, float], nesterov: bool):
            raise NotImplementedError

    assert operators.schema_of(Momentum) == (
        "(Tensor(a0!)[] params, Tensor[] grads, Tensor(a2!)[] momentum_buffers, "
        "Tensor(a3!)[] state_steps, Tensor lr, Tensor[] betas, bool nesterov, "
        "str? backend=None, bool fused=False) -> ()"
    )


@pytest.mark.parametrize("by_name", [False, True])
def test_the_bits_of_the_class(by_name: bool, backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    args = arguments()
    for tensor in [*args[2], *args[3], *args[4], *args[5]]:
        tensor.zero_()
    for seed in range(4):
        train_step(optimizer, seed)
        args[1] = [param.grad for param in params_of(optimizer)]
        before = [grad.clone() for grad in args[1]]
        if by_name:
            names = [argument.name for argument in operator._schema.arguments]
            operator(**dict(zip(names, [*args, backend, False], strict=True)))
        else:
            operator(*args, backend)
        for grad, old in zip(args[1], before, strict=True):
            assert_same_bits(grad, old, "a gradient")
    for i, param in enumerate(params_of(optimizer)):
        assert_same_bits(args[0][i], param, f"parameter {i}")
        for name, tensors in zip((*STATES, "step"), args[2:6], strict=True):
            assert_same_bits(tensors[i], optimizer.state[param][name], f"{name} {i}")


def test_what_is_refused_changes_nothing() -> None:
    for options, message in (
        ({"lr": -1.0}, "lr must be finite and >= 0"),
        ({"betas": (0.9, 1.0)}, "beta2 must lie in"),
        ({"variant": "other"}, "variant must be one of"),
    ):
        args = arguments(**options)
        before = [tensor.clone() for tensor in written(args)]
        with pytest.raises(ValueError, match=message):
            operator(*args)
        for tensor, old in zip(written(args), before, strict=True):
            assert_same_bits(tensor, old)


def test_fused_rules_out_the_reference() -> None:
    args = arguments()
    before = [tensor.clone() for tensor in written(args)]
    with pytest.raises(ValueError, match="fused=True asks for a kernel"):
        operator(*args, backend="reference", fused=True)
    for tensor, old in zip(written(args), before, strict=True):
        assert_same_bits(tensor, old)
    operator(*args, fused=True)


def test_autograd_learns_of_every_write() -> None:
    args = arguments()
    versions = [tensor._version for tensor in written(args)]
    grad_versions = [grad._version for grad in args[1]]
    operator(*args)
    assert all(t._version > v for t, v in zip(written(args), versions, strict=True))
    assert [grad._version for grad in args[1]] == grad_versions
