"""The keywords that say how a step runs and not what it computes: ``backend`` and torch's own.

They are the live optimizer's: a checkpoint neither brings nor takes them away. ``foreach``,
``fused`` and ``differentiable`` have torch.optim.Adam's names, so that its configurations serve.
"""

from __future__ import annotations

from typing import Any

from .backends import NAMES
from .validation import check_choice, shown

DEFAULTS: dict[str, Any] = {
    "backend": None,
    "foreach": None,
    "fused": None,
    "differentiable": False,
    "capturable": False,
}


def check(group: dict[str, Any]) -> None:
    """Raises where these keywords of a param group are unknown, refused or contradict each other.

    Raises:
        TypeError: a keyword of another type.
        ValueError: an unknown backend; ``fused=True`` with ``backend="reference"``.
        RuntimeError: ``fused`` and ``foreach`` both True, as in torch; ``differentiable=True``.
    """
    backend, fused = group["backend"], group["fused"]
    if backend is not None:
        check_choice("backend", backend, NAMES)
    for name in ("foreach", "fused"):
        if group[name] is not None and not isinstance(group[name], bool):
            raise TypeError(f"{name} must be None, True or False, got {shown(group[name])}")
    for name in ("differentiable", "capturable"):
        if not isinstance(group[name], bool):
            raise TypeError(f"{name} must be True or False, got {shown(group[name])}")
    if group["differentiable"]:
        raise RuntimeError(
            "differentiable=True is not served: a kernel writes the parameters where autograd "
            "does not see it. Leave it out; torch.optim.Adam(differentiable=True) has a step that "
            "autograd follows, and is AdaMod with beta3=0"
        )
    if fused and group["foreach"]:
        raise RuntimeError(
            "`fused` and `foreach` cannot be `True` together; leave one out: both choose the same "
            "kernels here"
        )
    if fused and backend == "reference":
        raise ValueError(
            "fused=True asks for a kernel, and backend='reference' for none; leave one out"
        )
