"""torch's optimizer test database with an entry for AdaMod: ``INFO``, and inputs made from it.

The database is private to torch and may move. Where it does not import, the tests that stand on
it are skipped, and say what is missing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from adamod_fused import AdaMod

try:
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
        optim_db,
    )
except ImportError as error:
    pytest.skip(
        f"torch {torch.__version__} has its optimizer test database elsewhere, or it needs what "
        f"pip install 'adamod_fused[test]' brings: {error}",
        allow_module_level=True,
    )


def optim_inputs_func_adamod(device: object, dtype: torch.dtype | None = None) -> list[Any]:
    """Hyperparameters, without the flags that only choose an implementation."""
    column = torch.tensor([[0.9]])
    kwargs: dict[str, dict[str, Any]] = {
        "default": {},
        "non-default lr": {"lr": 0.01},
        "nonzero weight_decay": {"weight_decay": 0.1},
        # The bound starts at 0: with a slow one the decay would outrun the ascent for 20 steps.
        "maximize": {"weight_decay": 0.1, "maximize": True, "beta3": 0.9},
        "no bound": {"beta3": 0.0, "eps": 1e-6},
        "released": {"variant": "released", "betas": (0.8, 0.95), "beta3": 0.9},
        "Tensor lr": {"lr": torch.tensor(0.001)},
        "Tensor lr, Tensor betas, Tensor beta3": {
            "lr": torch.tensor(0.001),
            "betas": (column, torch.tensor(0.99)),
            "beta3": torch.tensor([0.99]),
        },
    }
    return [OptimizerInput(params=None, kwargs=k, desc=desc) for desc, k in kwargs.items()]


def optim_error_inputs_func_adamod(device: object, dtype: torch.dtype) -> list[Any]:
    """torch's own for every optimizer, and AdaMod's."""

    def error(
        desc: str,
        error_type: type[Exception],
        regex: str,
        params: Any = None,
        on: Any = OptimizerErrorEnum.CONSTRUCTION_ERROR,
        **kwargs: Any,
    ) -> Any:
        wrong = OptimizerInput(params=params, kwargs=kwargs, desc=desc)
        return ErrorOptimizerInput(wrong, error_on=on, error_type=error_type, error_regex=regex)

    everyones = get_error_inputs_for_all_optims(device, dtype)
    for everyones_error in everyones:
        # Every hyperparameter of AdaMod that is no number gets this one error.
        if everyones_error.optimizer_error_input.desc == "Tensor lr must be 1-element":
            everyones_error.error_type = TypeError
            everyones_error.error_regex = "lr must be a number, got a torch.float32 tensor"
    sparse = Parameter(torch.ones(3, device=device, dtype=dtype))
    sparse.grad = torch.ones(3, device=device, dtype=dtype).to_sparse()
    complex_param = Parameter(torch.ones(3, device=device, dtype=torch.complex64))
    return [
        *everyones,
        error("beta1", ValueError, r"beta1 must lie in \[0, 1\), got 1.0", betas=(1.0, 0.0)),
        error("beta2", ValueError, r"beta2 must lie in \[0, 1\), got 1.0", betas=(0.0, 1.0)),
        error("beta3", ValueError, r"beta3 must lie in \[0, 1\), got 1.0", beta3=1.0),
        error("weight_decay", ValueError, "weight_decay must be .* >= 0", weight_decay=-1),
        error("fused and foreach", RuntimeError, "`fused` and `foreach`", fused=True, foreach=True),
        error("differentiable", RuntimeError, "differentiable=True", differentiable=True),
        error("complex", TypeError, "is complex .*view_as_real", params=[complex_param]),
        error("sparse", RuntimeError, "sparse", [sparse], OptimizerErrorEnum.STEP_ERROR),
    ]


INFO = OptimizerInfo(
    AdaMod,
    optim_inputs_func=optim_inputs_func_adamod,
    optim_error_inputs_func=optim_error_inputs_func_adamod,
    scheduler_inputs=next(i for i in optim_db if i.optim_cls is torch.optim.Adam).scheduler_inputs,
    supported_impls=("foreach", "fused"),
    not_og_supported_flags=("foreach", "fused", "differentiable"),
    supports_complex=False,
    supports_sparse=False,
    supports_fused_on=("cpu", "cuda"),
)

Make = Callable[..., AdaMod]
on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)


def _each_input(*choices: dict[str, bool]) -> pytest.MarkDecorator:
    inputs = [
        pytest.param(index, flags, id=" & ".join([given.desc, *flags]))
        for index, given in enumerate(INFO.optim_inputs_func(device="cpu"))
        for flags in choices
    ]
    return pytest.mark.parametrize(("index", "flags"), inputs)


on_each_input = _each_input({})
on_each_input_and_flag = _each_input({}, *({flag: True} for flag in INFO.supported_impls))


def kwargs_of(index: int, flags: dict[str, bool], device: str) -> dict[str, Any]:
    """Fresh ones, since schedulers write into a Tensor lr."""
    return INFO.optim_inputs_func(device=device)[index].kwargs | copy.deepcopy(flags)
