"""hypothesis drives the CPU kernels against the reference: any tensors, layouts and options."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from helpers import assert_same_bits, assert_same_training, params_of
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adamod_fused import AdaMod

# Derandomized: what is red is red for whoever runs it.
FUZZ = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

HALVES_AND_FLOAT = (torch.float32, torch.bfloat16, torch.float16)
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 17])


@dataclass
class Layout:
    """How values come to lie in memory: an order of dimensions, gaps, an offset, expansion."""

    order: tuple[int, ...]
    gap: int
    offset: int
    expanded: tuple[bool, ...]

    def lay_out(self, values: Tensor) -> Tensor:
        for d, expand in enumerate(self.expanded):
            if expand and values.shape[d] > 0:
                values = values.narrow(d, 0, 1)
        shape = [values.shape[d] for d in self.order]
        count = math.prod(shape) * self.gap + self.offset
        storage = torch.zeros(count, dtype=values.dtype)
        lying = storage[self.offset :: self.gap][: math.prod(shape)].view(shape)
        back = [self.order.index(d) for d in range(values.ndim)]
        return lying.permute(back).copy_(values)


@st.composite
def layouts(draw: st.DrawFn, ndim: int, expansion: bool = False) -> Layout:
    expanded = st.tuples(*[st.booleans() if expansion else st.just(False)] * ndim)
    return Layout(
        order=tuple(draw(st.permutations(range(ndim)))),
        gap=draw(st.sampled_from([1, 1, 2, 3])),
        offset=draw(st.sampled_from([0, 1, 3])),
        expanded=draw(expanded),
    )


@dataclass
class Run:
    """One run: tensors, options of groups, and what happens at each step."""

    dtypes: list[torch.dtype]
    shapes: list[tuple[int, ...]]
    param_layouts: list[Layout]
    group_of: list[int]
    options: list[dict[str, Any]]
    grad_layouts: list[list[Layout | None]]  # by step, by tensor; None for no gradient
    extremes: bool
    seed: int


def numbers(*often: float, high: float) -> st.SearchStrategy[float]:
    return st.sampled_from(often) | st.floats(0, high, allow_subnormal=False)


DECAY_RATES = st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999, 1 - 2.0**-53]) | st.floats(
    0, 1, exclude_max=True, allow_subnormal=False
)


def group_options(extremes: bool) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "lr": numbers(0.0, 1e-3, high=1e300 if extremes else 1.0),
            "betas": st.tuples(DECAY_RATES, DECAY_RATES),
            "beta3": DECAY_RATES,
            "eps": numbers(0.0, 1e-12, high=1e30) if extremes else st.floats(1e-8, 1.0),
            "weight_decay": numbers(0.0, 0.1, high=2.0),
            "variant": st.sampled_from(["paper", "released"]),
            "maximize": st.booleans(),
        }
    )


@st.composite
def plans(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...], extremes: bool) -> Run:
    shapes = draw(st.lists(st.lists(SIZES, max_size=4).map(tuple), min_size=1, max_size=5))
    options = draw(st.lists(group_options(extremes), min_size=1, max_size=3))
    each = range(len(shapes))
    return Run(
        dtypes=[draw(st.sampled_from(dtypes)) for _ in each],
        shapes=shapes,
        param_layouts=[draw(layouts(len(shape))) for shape in shapes],
        group_of=[draw(st.integers(0, len(options) - 1)) for _ in each],
        options=options,
        grad_layouts=[
            [draw(st.none() | layouts(len(shape), expansion=True)) for shape in shapes]
            for _ in range(draw(st.integers(1, 4)))
        ],
        extremes=extremes,
        seed=draw(st.integers(0, 2**32 - 1)),
    )


EXTREMES = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 1e-38, 1e20, -3e38, 6e4, 6e-8)


def random_values(shape: tuple[int, ...], extremes: bool, generator: torch.Generator) -> Tensor:
    """Values over many decades; where asked, a third of them extreme."""
    values = torch.randn(shape, generator=generator)
    values = values * 10.0 ** torch.randint(-4, 3, shape, generator=generator)
    if extremes:
        pool = torch.tensor(EXTREMES)
        drawn = pool[torch.randint(len(pool), shape, generator=generator)]
        values = torch.where(torch.rand(shape, generator=generator) < 1 / 3, drawn, values)
    return values


def run(plan: Run, backend: str, contiguous: bool) -> tuple[AdaMod, list[list[Tensor]]]:
    """Trains as planned; returns also the parameters before the first and after each step."""
    generator = torch.Generator().manual_seed(plan.seed)
    params = []
    for shape, dtype, layout in zip(plan.shapes, plan.dtypes, plan.param_layouts, strict=True):
        values = random_values(shape, plan.extremes, generator).to(dtype)
        params.append(nn.Parameter(values if contiguous else layout.lay_out(values)))
    groups: list[dict[str, Any]] = [{"params": [], **options} for options in plan.options]
    for param, group in zip(params, plan.group_of, strict=True):
        groups[group]["params"].append(param)
    optimizer = AdaMod(groups, backend=backend)
    history = [[param.detach().clone() for param in params]]
    for grad_layouts in plan.grad_layouts:
        grads = []
        for param, layout in zip(params, grad_layouts, strict=True):
            values = random_values(tuple(param.shape), plan.extremes, generator).to(param.dtype)
            grad = None if layout is None else layout.lay_out(values).expand(param.shape)
            param.grad = grad.contiguous() if contiguous and grad is not None else grad
            grads.append(copy.deepcopy(param.grad))
        optimizer.step()
        for param, grad in zip(params, grads, strict=True):
            if grad is not None:
                assert_same_bits(param.grad, grad, "a gradient")
        history.append([param.detach().clone() for param in params])
    return optimizer, history


def describe(plan: Run) -> None:
    note(str(plan))
    stepped = [layout for layouts in plan.grad_layouts for layout in layouts if layout]
    event("any gradient" if stepped else "no gradient")
    event("expanded gradient" if any(any(x.expanded) for x in stepped) else "none expanded")
    event("param with gaps" if any(x.gap > 1 for x in plan.param_layouts) else "no gaps")


@FUZZ
@given(plans(HALVES_AND_FLOAT, extremes=False))
def test_odd_layouts_equal_the_reference_on_contiguous_tensors(plan: Run) -> None:
    describe(plan)
    actual, _ = run(plan, "cpu", contiguous=False)
    expected, _ = run(plan, "reference", contiguous=True)
    assert_same_training(actual, expected)


@FUZZ
@given(plans(HALVES_AND_FLOAT, extremes=True))
def test_kernels_equal_the_reference_on_extreme_values(plan: Run) -> None:
    """Infinite, NaN, subnormal, zero and huge values; any NaN equals any NaN."""
    describe(plan)
    actual, _ = run(plan, "cpu", contiguous=False)
    expected, _ = run(plan, "reference", contiguous=False)
    assert_same_training(actual, expected)


@FUZZ
@given(plans((torch.float64,), extremes=False))
def test_float64_is_within_the_bound_of_one_square_root(plan: Run) -> None:
    """In float64 the reference's root, torch.sqrt, may be off by one in the last place.

    With u = 2^-53, the roots then differ by 2u relative to their size. Each operation that follows
    rounds two neighbouring values apart by at most 2u more: eta after `* b`, `+ eps` and the
    division by 8u; the bound s, an average with non-negative terms, by 8u + 4u a step; so
    min(eta, s) * m * c by (12 + 4t)u at step t. Let M be the largest |p| so far, and k = lr *
    weight_decay <= 2: then |1 - k| <= 1, so that old differences do not grow and the update,
    (1 - k) p_(t-1) - p_t, is at most 2M. Three more roundings take 2u each: of k * p, at most 2M,
    of its sum with the update, p_(t-1) - p_t, at most 2M, and of the new p, at most M. Over T
    steps: T * 2M * (17 + 4T)u. Second order is in the 1 %.
    """
    describe(plan)
    actual, history = run(plan, "cpu", contiguous=False)
    expected, other = run(plan, "reference", contiguous=False)
    steps, u = len(plan.grad_layouts), 2.0**-53
    for i in range(len(plan.shapes)):
        largest = torch.stack([p[i].abs() for p in (*history, *other)]).amax(0)
        bound = 1.01 * steps * 2 * largest * (17 + 4 * steps) * u
        assert bool(((history[-1][i] - other[-1][i]).abs() <= bound).all())
    for a, b in zip(params_of(actual), params_of(expected), strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq") if a in actual.state else ():
            assert_same_bits(actual.state[a][name], expected.state[b][name], name)
        if a in actual.state:
            s, s_expected = (o.state[p]["exp_avg_lr"] for o, p in ((actual, a), (expected, b)))
            tolerance = 1.01 * (8 + 4 * steps) * u * s_expected
            assert bool(((s - s_expected).abs() <= tolerance).all())
