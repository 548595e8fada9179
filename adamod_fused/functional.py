"""AdaMod as a function, for people who own their training loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import lists, reference
from .adamod import check_hyperparameters
from .hyperparameters import as_numbers


def adamod(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    exp_avg_lrs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    weight_decay: float,
    variant: str = "paper",
    maximize: bool = False,
    backend: str | None = None,
) -> None:
    """One AdaMod step in place on lists of tensors; :class:`adamod_fused.AdaMod` says the rule.

    The first call for tensors of some shapes, dtypes and devices plans their step, which takes some
    milliseconds for a hundred tensors. Later calls for tensors like them, the same or others, take
    about as long as the class. No tensor is kept alive between calls. States are floats and weights
    plain: other formats are the class's.

    Args:
        params: parameters, float32, bfloat16, float16 or float64; any shapes, layouts, devices.
        grads: gradients, each of its parameter's shape, dtype and device. Read only.
        exp_avgs: first moments, each of its parameter's shape and device; float64 for float64
            parameters, else float32. So are the next two.
        exp_avg_sqs: second moments.
        exp_avg_lrs: averages of the learning rate, the bound.
        state_steps: steps done so far, 0-dim float32 tensors on the CPU; each is increased by 1.
        lr: step size, >= 0. This and the rest: as for the class.
        beta1: decay rate of the first moment, in [0, 1).
        beta2: decay rate of the second moment, in [0, 1).
        beta3: decay rate of the learning rate's average, in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled weight decay, times lr, >= 0.
        variant: ``"paper"`` or ``"released"``. Default: "paper".
        maximize: ascend instead of descend. Default: False.
        backend: None chooses the fastest for each tensor; a name obeys or raises. Default: None.

    Raises:
        TypeError, ValueError, RuntimeError: as for the class; no tensor has changed.
    """
    hyperparameters = {
        "lr": lr,
        "betas": (beta1, beta2),
        "beta3": beta3,
        "eps": eps,
        "weight_decay": weight_decay,
        "variant": variant,
        "maximize": maximize,
    }
    check_hyperparameters(hyperparameters)
    hyperparameters = {name: as_numbers(value) for name, value in hyperparameters.items()}
    lists.step(
        reference.AdaMod,
        (params, grads, exp_avgs, exp_avg_sqs, exp_avg_lrs, state_steps),
        hyperparameters,
        backend,
    )
