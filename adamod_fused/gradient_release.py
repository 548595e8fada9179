"""Steps inside the backward pass: each gradient is used and freed as soon as it is complete.

Then the gradients of a model never exist all at once. The idea is that of LOMO (Lv et al., arXiv
2306.09782) and of torch's tutorial on optimizer steps in backward; here small tensors wait for one
another, so that each launch has work enough.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import validation
from .hyperparameters import as_integer
from .optimizer import FusedOptimizer

BATCH_NUMEL = 1 << 20


class GradientRelease:
    """The hooks of :func:`release_gradients`; ``remove()`` takes them away again.

    It belongs to the optimizer and does not keep it alive; nor do the hooks, which belong to the
    parameters: Python's collector cannot follow what holds them.
    """

    def __init__(self, optimizer: FusedOptimizer, batch_numel: int) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._batch_numel = batch_numel
        self._waiting: set[Tensor] = set()  # whose gradients are there
        self._waiting_numel = 0
        self._stepped: set[Tensor] = set()  # by backward, since the last step()
        hook = _weak_hook(self)
        self._handles = [
            param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            for param in _params(optimizer)
            if param.requires_grad
        ]

    def take(self, param: Tensor) -> None:
        """Steps with the gradients that are there once they are enough for a launch."""
        if (optimizer := self._optimizer()) is None:
            return
        if param in self._stepped:
            self.check(optimizer)
        if param not in self._waiting:
            self._waiting.add(param)
            self._waiting_numel += param.numel()
        if self._waiting_numel >= self._batch_numel:
            self.check(optimizer)
            due = [param for param in _params(optimizer) if param.grad is not None]
            with torch.no_grad():
                optimizer._step_within_backward()
            self._stepped.update(due)
            self._free(optimizer)

    def check(self, optimizer: FusedOptimizer) -> None:
        """Raises where a parameter that backward has stepped has a gradient once more.

        Raises:
            RuntimeError: names it; nothing has been stepped with that gradient.
        """
        if not any(param.grad is not None for param in self._stepped):
            return
        for index, group in enumerate(optimizer.param_groups):
            for i, param in enumerate(group["params"]):
                if param in self._stepped and param.grad is not None:
                    raise RuntimeError(
                        f"{validation.label(index, i, group)} has another gradient after "
                        "backward stepped it, and release_gradients() steps it once for each "
                        "step(); call step() after each backward pass, and zero_grad() and step() "
                        "after one that failed, use checkpoint(..., use_reentrant=False), whose "
                        "segments share one, or remove() the handle"
                    )

    def forget(self) -> None:
        """Starts anew, with what was loaded: what backward has stepped before counts no more."""
        self._stepped.clear()

    def finish(self, optimizer: FusedOptimizer) -> None:
        """Ends what the backward pass began, after ``step()`` has stepped the rest."""
        self._stepped.clear()
        self._free(optimizer)

    def _free(self, optimizer: FusedOptimizer) -> None:
        self._waiting.clear()
        self._waiting_numel = 0
        for param in _params(optimizer):
            param.grad = None

    def remove(self) -> None:
        """Takes the hooks away: gradients stay until ``step()`` and ``zero_grad()`` again."""
        for handle in self._handles:
            handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None and optimizer._release is self:
            optimizer._release = None


def _params(optimizer: FusedOptimizer) -> chain[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _weak_hook(release: GradientRelease) -> Callable[[Tensor], None]:
    known = weakref.ref(release)

    def hook(param: Tensor) -> None:
        if (release := known()) is not None:
            release.take(param)

    return hook


def release_gradients(
    model: nn.Module, optimizer: FusedOptimizer, *, batch_numel: int = BATCH_NUMEL
) -> GradientRelease:
    """Has ``optimizer`` step each parameter of ``model`` during backward and free its gradient.

    The training loop stays as it is: ``optimizer.step()`` after backward steps what is left, so it
    must follow each backward pass, and gradients cannot be accumulated over several. The bits are
    those of ``step()`` after backward, or there is an error: where autograd reads a parameter again
    that is stepped already, its own; where a parameter that is stepped gets another gradient, ours,
    before it is stepped again. So it is where gradients are accumulated, and where several segments
    of ``torch.utils.checkpoint(use_reentrant=True)``, each a backward pass of its own, share a
    parameter. One case has no error: a checkpoint that recomputes with a parameter it detaches.
    Hooks of ``step()`` run around that last step only. Parameters unfrozen later are stepped there
    or with the others.

    Args:
        model: whose parameters ``optimizer`` has, all of them that require gradients.
        optimizer: an optimizer of this package.
        batch_numel: tensors wait until so many elements are to be stepped. Default: 2^20.

    Returns:
        A handle whose ``remove()`` undoes it.

    Raises:
        TypeError: ``model`` is a DistributedDataParallel or holds one, whose gradients are not
            reduced yet when they are first there (nor are those of its ``module``, which does not
            tell); ``optimizer`` is not of this package.
        ValueError: the model has parameters that the optimizer does not, or on several devices,
            where autograd's threads would step at once; bad ``batch_numel``.
        RuntimeError: the gradients of ``optimizer`` are released already. Later: gradients are to
            be clipped by their common norm, or a GradScaler is to skip a step: both need all
            gradients before the first step; or a parameter gets another gradient before ``step()``.
            Parameters that backward has stepped by then stay so, with gradients as the loss was
            scaled.

    Example:
        >>> import torch
        >>> from adamod_fused import AdaMod, release_gradients
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = AdaMod(model.parameters(), lr=1e-3)
        >>> handle = release_gradients(model, optimizer)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
    """
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise TypeError(
            "release_gradients cannot serve a DistributedDataParallel model: it reduces gradients "
            "after they are first there; use fully_shard (FSDP2), or step after backward"
        )
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            f"release_gradients needs an optimizer of adamod_fused, got {type(optimizer).__name__}"
        )
    batch_numel = as_integer(batch_numel)
    if not isinstance(batch_numel, int) or batch_numel < 1:
        raise ValueError(f"batch_numel must be an integer >= 1, got {batch_numel!r}")
    if optimizer._release is not None:
        raise RuntimeError("the gradients of this optimizer are released already; remove() first")
    known = {param for group in optimizer.param_groups for param in group["params"]}
    unknown = [name for name, p in model.named_parameters() if p.requires_grad and p not in known]
    if unknown:
        raise ValueError(
            f"the model has parameters that the optimizer does not: {', '.join(unknown[:3])}; "
            "add them, or call requires_grad_(False) on them"
        )
    devices = sorted({str(param.device) for param in model.parameters()})
    if len(devices) > 1:
        raise ValueError(f"release_gradients serves models on one device, got {devices}")
    optimizer._release = GradientRelease(optimizer, batch_numel)
    return optimizer._release
