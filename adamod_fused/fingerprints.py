"""Which gradients a clip is of: weak references to them, and how often each was written."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor

Fingerprint = list[tuple["weakref.ref[Tensor]", "int | None"]]


def of(grads: Iterable[Tensor]) -> Fingerprint:
    """The fingerprint of gradients, which it does not keep alive."""
    return [(weakref.ref(grad), _version(grad)) for grad in grads]


def are_equal(fingerprint: Fingerprint, of_living: Fingerprint) -> bool:
    """Whether both are of the same gradients in any order, those of ``of_living`` being alive."""
    known, found = ({id(ref()): version for ref, version in f} for f in (fingerprint, of_living))
    return len(fingerprint) == len(of_living) and known == found


def error() -> RuntimeError:
    """Says that gradients are not those of the clip."""
    return RuntimeError(
        "gradients changed after clip_grad_norm_(); call it right before step(), after the last "
        "backward pass; optimizer.zero_grad() drops a clip that no step used"
    )


def _version(tensor: Tensor) -> int | None:
    """How often it was written; None for one made in inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version
