"""Optimizers whose steps are looked at, for tests that hold each backend's look to the reference's.

What is compared are the observations as they lie in memory: every bit of every segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from cases import GROUPS
from torch import Tensor, nn

from adamod_fused import AdaMod
from adamod_fused.formats import Formats

# Around the widths of a block of codes, of the lanes, of a segment; and rows without any.
SIZES = (0, 1, 31, 32, 33, 255, 256, 257, 0, 16383, 16384, 16385, 40000, 7)
FEW_SIZES = (0, 1, 31, 257, 0, 16385)  # the reference takes long to make codes

# One that never bounds, one that never moves; without eps, rates of the dead are infinite.
WATCHED_GROUPS = (
    *GROUPS,
    {"lr": 0.3, "beta3": 0.0, "eps": 0.0, "betas": (0.0, 0.9)},
    {"lr": 0.0, "beta3": 0.5, "eps": 1e-12},
)

LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x.permute(3, 1, 0, 2),
    lambda x: x[..., ::2],
)


class Stored(NamedTuple):
    """What one launch serves: a dtype and formats."""

    dtype: torch.dtype
    formats: Formats

    def __str__(self) -> str:
        return "-".join((str(self.dtype).removeprefix("torch."), *self.formats))

    @property
    def sizes(self) -> tuple[int, ...]:
        return SIZES if self.formats.are_plain else FEW_SIZES


STORED = [
    Stored(dtype, Formats(*formats))
    for dtype, *formats in (
        (torch.float32, "fp32", "plain"),
        (torch.float32, "16bit", "plain"),
        (torch.float32, "8bit", "plain"),
        (torch.bfloat16, "fp32", "plain"),
        (torch.bfloat16, "16bit", "stochastic"),
        (torch.bfloat16, "8bit", "split"),
        (torch.bfloat16, "fp32", "split"),
        (torch.float16, "fp32", "plain"),
        (torch.float16, "8bit", "plain"),
    )
]
"""Each dtype and each format of states; a look does not read the weights."""


def observations(optimizer: AdaMod) -> dict[int, Tensor]:
    """Of each parameter that the last look saw, by number: its segments' rows of int64."""
    found = {}
    for seen in optimizer._tracker._last.seen:
        matrix = seen.observed.cpu()
        for ordinal, first, count in zip(
            seen.ordinals, seen.slots.first.tolist(), seen.slots.segments.tolist(), strict=True
        ):
            found[ordinal] = matrix[first : first + count]
    return found


def assert_same_look(actual: dict[int, Tensor], expected: dict[int, Tensor], when: str) -> None:
    assert actual.keys() == expected.keys(), when
    for number, segments in expected.items():
        differs = (actual[number] != segments).nonzero().tolist()
        assert actual[number].shape == segments.shape, f"parameter {number} {when}"
        assert not differs, f"parameter {number} {when}: segment and column {differs[:5]}"


def watched_params(dtype: torch.dtype, device: str, sizes: Sequence[int]) -> list[nn.Parameter]:
    """Of each size, every other one not aligned, and some that do not lie row by row."""
    generator = torch.Generator().manual_seed(3)
    bases = [torch.randn(size + i % 2, generator=generator) for i, size in enumerate(sizes)]
    values = [base.to(device, dtype)[i % 2 :] for i, base in enumerate(bases)]
    cube = torch.randn(2, 3, 5, 8, generator=generator).to(device, dtype)
    return [nn.Parameter(v) for v in (*values, *(layout(cube.clone()) for layout in LAYOUTS))]


@cache
def _gradients(shapes: tuple[torch.Size, ...], step: int) -> list[Tensor]:
    """Over eight decades, a tenth zero; some not finite, one tensor all NaN and one all zero."""
    generator = torch.Generator().manual_seed(100 + step)
    grads = []
    for number, shape in enumerate(shapes):
        grad = torch.randn(shape, generator=generator)
        grad *= 10.0 ** torch.randint(-6, 3, shape, generator=generator)
        grad *= torch.rand(shape, generator=generator) > 0.1
        if number % 5 == 4 and step == 1:
            special = torch.tensor([torch.nan, torch.inf, -torch.inf])
            grad.view(-1)[::97] = special.repeat(grad.numel())[: len(grad.view(-1)[::97])]
        grads.append(grad)
    grads[2].fill_(torch.nan)
    grads[5].zero_()
    return grads


def set_watched_grads(params: Sequence[nn.Parameter], step: int) -> None:
    grads = _gradients(tuple(param.shape for param in params), step)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        grad = grad.to(param.device, param.dtype, copy=True)
        if i % 3 == 0 and grad.dim() == 1:  # not aligned as the parameter is
            grad = torch.cat([grad[:1], grad])[1:] if len(grad) else grad
        param.grad = grad


def clip_all(optimizer: AdaMod) -> None:
    """Clips the norm, once all gradients are finite."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.nan_to_num(param.grad, 0.0, 1.0, -1.0)
    optimizer.clip_grad_norm_(0.5)


def looks(
    backend: str,
    stored: Stored,
    device: str = "cpu",
    sizes: Sequence[int] = (),
    steps: int = 3,
    before_step: Callable[[AdaMod], object] = lambda _: None,
    **options: Any,
) -> Iterator[tuple[AdaMod, dict[int, Tensor]]]:
    """The optimizer and what was seen, after each step."""
    params = watched_params(stored.dtype, device, sizes or stored.sizes)
    count = len(WATCHED_GROUPS)
    optimizer = AdaMod(
        [{"params": params[i::count], **group} for i, group in enumerate(WATCHED_GROUPS)],
        backend=backend,
        state_format=stored.formats.state,
        weight_format=stored.formats.weight,
        min_coded_numel=0,
        track_bound=1,
        **options,
    )
    for step in range(steps):
        set_watched_grads(params, step)
        before_step(optimizer)
        optimizer.step()
        yield optimizer, observations(optimizer)


@cache
def expected_looks(stored: Stored, **options: Any) -> tuple[tuple[dict[int, Tensor], str], ...]:
    """By the reference: what is seen, and the rows as text."""
    found = looks("reference", stored, **options)
    return tuple((seen, repr(optimizer.bound_stats())) for optimizer, seen in found)


def check_looks(backend: str, stored: Stored, device: str = "cpu", **options: Any) -> None:
    """Each look of a backend at the watched parameters is the reference's, bit for bit."""
    shared = {k: v for k, v in options.items() if k != "capturable"}
    wanted = expected_looks(stored, **shared)
    for step, (optimizer, seen) in enumerate(looks(backend, stored, device, **options)):
        assert_same_look(seen, wanted[step][0], f"at step {step + 1}")
        assert repr(optimizer.bound_stats()) == wanted[step][1]
