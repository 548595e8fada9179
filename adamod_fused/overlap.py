"""Whether strided tensors share memory, element by element."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from torch import Tensor

# A stride and the least and the greatest whole number that it is multiplied by.
Term = tuple[int, int, int]

MAX_CHOICES = 10_000
"""After so many a search gives up and takes memory for shared: no common layout needs them."""


def span(tensor: Tensor) -> tuple[int, int]:
    """The address of a tensor's first byte, and the one behind its last."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two of a tensor's elements are at one address."""
    if tensor.numel() == 0 or tensor.is_contiguous():
        return False
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    dims = sorted((stride, n) for stride, n in sizes if n > 1)
    if dims and dims[0][0] == 0:
        return True
    # Two places differ, and some dimension is the last in which they do.
    return any(
        _reaches(0, [(stride, 1, n - 1), *((s, 1 - m, m - 1) for s, m in dims[:i])])
        for i, (stride, n) in enumerate(dims)
    )


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether a byte of ``a`` is one of ``b``, both with elements and on one device."""
    ranges: dict[int, list[int]] = {1: [1 - b.element_size(), a.element_size() - 1]}
    for tensor, sign in ((a, 1), (b, -1)):
        for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
            bounds = ranges.setdefault(stride * tensor.element_size(), [0, 0])
            bounds[sign > 0] += sign * (n - 1)
    terms = [(stride, low, high) for stride, (low, high) in ranges.items()]
    return _reaches(b.data_ptr() - a.data_ptr(), terms)


def overlapping(
    written: Iterable[tuple[Tensor, str]], read: Iterable[tuple[Tensor, str]]
) -> Iterator[tuple[str, str, bool]]:
    """Names of two tensors that share memory, one of them written, and whether the second is read.

    Tensors are plain and strided, each with what it is called.
    """
    spans = sorted(
        (
            (str(tensor.device), *span(tensor), is_read, who, tensor)
            for tensor, who, is_read in itertools.chain(
                ((tensor, who, False) for tensor, who in written),
                ((tensor, who, True) for tensor, who in read),
            )
            if tensor.numel() > 0
        ),
        key=lambda entry: entry[:3],
    )
    reach: dict[bool, list[tuple[str, int, str, Tensor]]] = {False: [], True: []}
    for device, begin, end, is_read, who, tensor in spans:
        for is_other_read in (False,) if is_read else (False, True):
            met = [other for other in reach[is_other_read] if other[:2] > (device, begin)]
            reach[is_other_read] = met  # what ends before this begins meets none of the rest
            for _, _, other_who, other in met:
                if share_memory(other, tensor):
                    yield (who, other_who, True) if is_other_read else (other_who, who, is_read)
        reach[is_read].append((device, end, who, tensor))


def _reaches(target: int, terms: Iterable[Term]) -> bool:
    """Whether the sum of the terms can be ``target``.

    Depth first, the greatest stride first: what smaller strides can add bounds the choice.
    """
    ordered = sorted((term for term in terms if term[0]), reverse=True)
    bounds = [(0, 0)]
    for stride, low, high in reversed(ordered):
        bounds.append((bounds[-1][0] + stride * low, bounds[-1][1] + stride * high))
    bounds.reverse()
    open_choices, seen = [(0, target)], set()
    while open_choices:
        choice = depth, rest = open_choices.pop()
        least, most = bounds[depth]
        if choice in seen or not least <= rest <= most:
            continue
        if depth == len(ordered):
            return True
        seen.add(choice)
        stride, low, high = ordered[depth]
        least, most = bounds[depth + 1]
        low, high = max(low, -((most - rest) // stride)), min(high, (rest - least) // stride)
        if len(seen) + len(open_choices) + high - low > MAX_CHOICES:
            return True
        open_choices += [(depth + 1, rest - stride * x) for x in range(low, high + 1)]
    return False
