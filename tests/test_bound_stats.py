"""What ``bound_stats`` says, against numbers worked out here in float64 by the paper's formulas."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from helpers import random_params, set_random_grads
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adamod_fused import AdaMod
from adamod_fused.bound_stats import HISTOGRAM_EDGES

# Each float32 operation is off by 2^-24 at most; from the gradient to a rate, a bound or an update
# are fewer than 32 of them, of one sign or with factors apart.
RTOL = 2.0**-19


class Formula:
    """Algorithm 1 of the paper on one list of numbers, in float64."""

    def __init__(self, numel: int, released: bool = False, **options: float) -> None:
        self.lr, self.beta1, self.beta2 = options["lr"], options["beta1"], options["beta2"]
        self.beta3, self.eps, self.released = options["beta3"], options["eps"], released
        self.m, self.v, self.s = ([0.0] * numel for _ in range(3))
        self.t = 0

    def step(self, grads: list[float]) -> dict[str, Any]:
        self.t += 1
        bc1, bc2 = 1 - self.beta1**self.t, 1 - self.beta2**self.t
        rates, bounded, updates = [], [], []
        for i, g in enumerate(grads):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g * g
            if self.released:
                eta = self.lr * math.sqrt(bc2) / bc1 / (math.sqrt(self.v[i]) + self.eps)
            else:
                eta = self.lr / (math.sqrt(self.v[i] / bc2) + self.eps)
            self.s[i] = self.beta3 * self.s[i] + (1 - self.beta3) * eta
            rates.append(eta)
            bounded.append(min(eta, self.s[i]))
            updates.append(bounded[-1] * self.m[i] / (1 if self.released else bc1))
        return {
            "step": self.t,
            "numel": len(grads),
            "lr": self.lr,
            "bounded": sum(b < r for b, r in zip(bounded, rates, strict=True)) / len(grads),
            **_summary("rate", rates),
            **_summary("bounded_rate", bounded),
            "grad_norm": math.hypot(*grads),
            "update_norm": math.hypot(*updates),
            "dead": sum(v == 0 for v in self.v),
            "nonfinite": 0,
        }


def _summary(name: str, rates: list[float]) -> dict[str, Any]:
    counts = [0] * 64
    for rate in rates:
        counts[min(max(math.floor(math.log2(rate)) + 40, 0), 63)] += 1
    mean = math.fsum(rates) / len(rates)
    return {
        f"{name}_min": min(rates),
        f"{name}_max": max(rates),
        f"{name}_mean": mean,
        f"{name}_hist": counts,
    }


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_against_the_formula(variant: str, backend: str) -> None:
    numbers = {"lr": 3e-2, "beta3": 0.9, "eps": 1e-6}
    formula = Formula(6, variant == "released", beta1=0.8, beta2=0.95, **numbers)
    param = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(1)))
    options = {**numbers, "betas": (0.8, 0.95), "variant": variant, "weight_decay": 0.1}
    optimizer = AdaMod([("weight", param)], **options, backend=backend, track_bound=1)
    for step in range(25):
        grads = [0.0, 1.0, -0.125 * step, 3e-5, -700.0 / (1 + step), (-1.0) ** step]
        param.grad = torch.tensor(grads)
        optimizer.step()
        (row,) = optimizer.bound_stats()
        wanted = formula.step(param.grad.tolist())
        assert row.keys() == wanted.keys() | {"group", "index", "name"}
        assert (row["group"], row["index"], row["name"]) == (0, 0, "weight")
        for name, value in wanted.items():
            if name.endswith("hist") or isinstance(value, int):
                assert row[name] == value, name
            else:
                assert row[name] == pytest.approx(value, rel=RTOL, abs=0), name
    assert 0 < row["bounded"] < 1
    assert row["dead"] == 1


def row_of_rates(rates: list[float], backend: str, **options: Any) -> dict[str, Any]:
    """Rates are 1 / sqrt(v) where lr = 1, eps = 0 and no bound is in the way."""
    param = nn.Parameter(torch.zeros(len(rates), dtype=torch.float64))
    settings = {"lr": 1.0, "betas": (0.0, 0.0), "beta3": 0.0, "eps": 0.0} | options
    optimizer = AdaMod([param], **settings, backend=backend, track_bound=1)
    param.grad = 1 / torch.tensor(rates, dtype=torch.float64)
    optimizer.step()
    (row,) = optimizer.bound_stats()
    return row


@pytest.mark.parametrize("exponent", [-41, -40, -39, -1, 0, 1, 22, 23, 24, 25])
def test_edges_of_the_histogram(exponent: int, backend: str) -> None:
    """A bin begins at its power of two; below the first and above the last edge, the outer bins."""
    edge = 2.0**exponent
    row = row_of_rates([edge, edge, edge * 1.5, edge * (1 - 2.0**-20)], backend)
    counts = [0] * 64
    for value, count in ((exponent, 3), (exponent - 1, 1)):
        counts[min(max(value + 40, 0), 63)] += count
    assert row["rate_hist"] == row["bounded_rate_hist"] == counts
    assert HISTOGRAM_EDGES[0] == 2.0**-40
    assert HISTOGRAM_EDGES[-1] == 2.0**24
    assert len(HISTOGRAM_EDGES) == 65
    inside = [i for i in range(64) if HISTOGRAM_EDGES[i] <= edge < HISTOGRAM_EDGES[i + 1]]
    assert all(counts[i] >= 3 for i in inside)


def test_rates_of_zero_are_in_the_first_bin(backend: str) -> None:
    row = row_of_rates([1.0, 2.0], backend, lr=0.0)
    assert row["rate_hist"] == [2] + [0] * 63
    assert (row["rate_min"], row["rate_max"], row["rate_mean"]) == (0.0, 0.0, 0.0)
    assert row["update_norm"] == 0.0


def test_how_many_are_bounded(backend: str) -> None:
    """At the first step s = (1 - beta3) eta: all of them; with beta3 = 0 s is eta: none."""
    for beta3, share in ((0.9, 1.0), (0.0, 0.0)):
        (param,) = random_params((1000,))
        optimizer = AdaMod([param], beta3=beta3, backend=backend, track_bound=1)
        set_random_grads([param], 0)
        optimizer.step()
        (row,) = optimizer.bound_stats()
        assert row["bounded"] == share
        factor = 1 - beta3
        for what in ("min", "max", "mean"):
            limited = pytest.approx(row[f"rate_{what}"] * factor, rel=RTOL)
            assert row[f"bounded_rate_{what}"] == limited


def test_dead_are_those_that_never_had_a_gradient(backend: str) -> None:
    param = nn.Parameter(torch.ones(10))
    optimizer = AdaMod([param], backend=backend, track_bound=1, betas=(0.0, 0.9))
    for grad in ([1.0] * 3 + [0.0] * 7, [0.0] * 9 + [1.0], [0.0] * 10):
        param.grad = torch.tensor(grad)
        optimizer.step()
    (row,) = optimizer.bound_stats()
    assert row["dead"] == 6  # though exp_avg of all is 0 by now
    assert row["grad_norm"] == row["update_norm"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_there_alone(value: float, backend: str) -> None:
    """As if those elements were not there: the others' row is that of a tensor without them."""
    rows = []
    for spoiled in (True, False):
        values = torch.linspace(-1, 2, 40000)
        grad = values.clone()
        if spoiled:
            values, grad = (
                torch.cat([values, values[:9]]),
                torch.cat([grad, torch.full((9,), value)]),
            )
        param = nn.Parameter(values)
        optimizer = AdaMod([param], backend=backend, track_bound=1)
        param.grad = grad
        optimizer.step()
        rows += optimizer.bound_stats()
    spoiled_row, row = rows
    assert spoiled_row.pop("nonfinite") == 9
    assert row.pop("nonfinite") == 0
    assert spoiled_row.pop("numel") == row.pop("numel") + 9
    assert spoiled_row == row


def test_nothing_finite(backend: str) -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.full((3,), math.nan)
    optimizer = AdaMod([param], backend=backend, track_bound=1)
    optimizer.step()
    (row,) = optimizer.bound_stats()
    assert row["nonfinite"] == 3
    assert row["grad_norm"] == row["update_norm"] == row["dead"] == 0
    assert row["rate_hist"] == row["bounded_rate_hist"] == [0] * 64
    for name in ("bounded", "rate_min", "rate_max", "rate_mean", "bounded_rate_mean"):
        assert math.isnan(row[name]), name


def test_norms_against_torch(backend: str) -> None:
    """Squares and sums are float64, of float32 values: torch's own float64 norm, to 2^-40.

    The update is what the parameter lost; from 0 it is the parameter, rounded not once more.
    """
    param = nn.Parameter(torch.zeros(50_000))
    set_random_grads([param], 3)
    optimizer = AdaMod([param], backend=backend, track_bound=1, weight_decay=0.5)
    optimizer.step()
    (row,) = optimizer.bound_stats()
    for name, tensor in (("grad_norm", param.grad), ("update_norm", param.detach())):
        wanted = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
        assert row[name] == pytest.approx(wanted, rel=2.0**-40), name


def test_norms_too_large_for_float64(backend: str) -> None:
    param = nn.Parameter(torch.zeros(40000, dtype=torch.float64))
    param.grad = torch.full_like(param, 8e151)
    optimizer = AdaMod([param], backend=backend, track_bound=1)
    optimizer.step()
    assert optimizer.bound_stats()[0]["grad_norm"] == math.inf


def test_a_group_is_the_sum_of_its_tensors(backend: str) -> None:
    params = random_params((3, 4), (), (0,), (40000,), (7,))
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.2}]
    optimizer = AdaMod(groups, lr=3e-2, beta3=0.5, backend=backend, track_bound=1)
    for step in range(3):
        set_random_grads(params, step)
        params[4].grad = None if step == 2 else params[4].grad
        optimizer.step()
    tensors, by_group = optimizer.bound_stats(), optimizer.bound_stats(by="group")
    assert [(row["group"], row["index"], row["name"]) for row in tensors] == [
        *((0, 0, "0.0"), (0, 1, "0.1"), (1, 1, "1.1"))  # neither empty ones nor those without
    ]
    assert [(row["group"], row["index"], row["name"]) for row in by_group] == [
        *((0, None, "group 0"), (1, None, "group 1"))
    ]
    for row in by_group:
        parts = [part for part in tensors if part["group"] == row["group"]]
        assert row["lr"] == parts[0]["lr"] == (3e-2, 0.2)[row["group"]]
        for name in ("numel", "dead", "nonfinite"):
            assert row[name] == sum(part[name] for part in parts)
        for name in ("grad_norm", "update_norm"):
            assert row[name] == pytest.approx(math.hypot(*(part[name] for part in parts)))
        shares = sum(part["bounded"] * part["numel"] for part in parts)
        assert row["bounded"] * row["numel"] == pytest.approx(shares)
        for name in ("rate", "bounded_rate"):
            assert row[f"{name}_min"] == min(part[f"{name}_min"] for part in parts)
            assert row[f"{name}_max"] == max(part[f"{name}_max"] for part in parts)
            total = sum(part[f"{name}_mean"] * part["numel"] for part in parts)
            assert row[f"{name}_mean"] * row["numel"] == pytest.approx(total)
            columns = zip(*(part[f"{name}_hist"] for part in parts), strict=True)
            assert row[f"{name}_hist"] == [sum(column) for column in columns]


def test_rows_are_flat_and_of_plain_types() -> None:
    """So that pandas, JSON and writers of logs take them as they are."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = AdaMod(model.named_parameters(), lr=torch.tensor(0.01), track_bound=1)
    set_random_grads(model.parameters(), 0)
    optimizer.step()
    rows = optimizer.bound_stats() + optimizer.bound_stats("group")
    assert [row["name"] for row in rows] == [*dict(model.named_parameters()), "group 0"]
    for row in rows:
        assert row.keys() == rows[0].keys()
        for name, value in row.items():
            if name.endswith("_hist"):
                assert [type(count) for count in value] == [int] * 64
            else:
                assert type(value) in (int, float, str, type(None)), name


def test_tensors_of_one_name_are_told_apart() -> None:
    """By group and place, also where only one of them was stepped."""
    params = random_params((3,), (4,), (5,))
    groups = [{"params": [("weight", params[0])]}]
    groups += [{"params": [("bias", params[1]), ("weight", params[2])]}]
    optimizer = AdaMod(groups, track_bound=1)
    seen = []
    for first_too in (True, False):
        set_random_grads(params, 0)
        params[0].grad = params[0].grad if first_too else None
        optimizer.step()
        seen.append({row["name"]: row["numel"] for row in optimizer.bound_stats()})
    assert seen == [
        {"weight (0.0)": 3, "bias": 4, "weight (1.1)": 5},
        {"bias": 4, "weight (1.1)": 5},
    ]
    assert [row["name"] for row in optimizer.bound_stats("group")] == ["group 1"]


class Counting(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("by", ["tensor", "group"])
def test_rows_of_many_tensors_take_no_more_operations_than_those_of_few(by: str) -> None:
    counts = []
    for tensors in (3, 50):
        params = random_params(*[(5,)] * tensors)
        set_random_grads(params, 0)
        optimizer = AdaMod(params, backend="cpu", track_bound=1)
        optimizer.step()
        with Counting() as counting:
            optimizer.bound_stats(by)
        counts.append(counting.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("by", ["layer", None, 0])
def test_by_something_else(by: Any) -> None:
    optimizer = AdaMod(random_params((3,)), track_bound=1)
    with pytest.raises(ValueError, match=re.escape(f"got {by!r}")):
        optimizer.bound_stats(by=by)
