"""Scalars prepared by the Triton kernel: the bits of the reference, from numbers on the device."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable

import pytest
import torch
from cases import SIZES
from helpers import assert_same_bits
from interpreted import INTERPRETED, InChildProcess, Interpreted
from torch import Tensor
from triton_rows import HYPERPARAMETERS, check, launch, make_row, rounded, update_expected

from adamod_fused.reference import AdaMod, integer_power

triton = pytest.importorskip("triton", reason="the Triton backend needs triton")
tl = triton.language

NUM_SCALARS = len(AdaMod.Scalars._fields)
# In both variants and both directions.
GROUPS = [
    {**hyperparameters, "variant": variant, "maximize": maximize}
    for hyperparameters in HYPERPARAMETERS
    for variant in ("paper", "released")
    for maximize in (False, True)
]


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


def in_order(group: dict) -> list[float]:
    """As ``Hyperparameters`` has them, csrc/rules/adamod.h."""
    plain = [group[name] for name in ("beta3", "eps", "weight_decay", "maximize")]
    return [group["lr"], *group["betas"], *map(float, plain), float(group["variant"] != "paper")]


def prepared(steps: Tensor, groups: list[dict]) -> Tensor:
    """One row for each step, of the groups in turn."""
    rows = [
        AdaMod.prepare(step, **group)
        for step, group in zip(steps.tolist(), itertools.cycle(groups), strict=False)
    ]
    return torch.tensor(rows, dtype=torch.float64).float()


def single(x: float) -> float:
    return torch.tensor(x, dtype=torch.float64).float().item()


def near_a_tie(lr: float, ways: Callable[[float], tuple[float, float]]) -> float:
    """A rate like ``lr`` with which two ways to compute a scalar end in two float32 numbers."""
    below = torch.tensor(ways(lr)[0])
    for _ in range(100):
        above = torch.nextafter(below, torch.tensor(torch.inf))
        tie = (below.item() + above.item()) / 2
        middle = lr * tie / ways(lr)[0]
        for rate in (middle + k * math.ulp(middle) for k in range(-8, 9)):
            one, other = map(single, ways(rate))
            if one != other:
                return rate
        below = above
    raise AssertionError(f"no rate near {lr}")


class Cases:
    """What holds in the interpreter and on a GPU."""

    device = ""

    def counts(self, steps: Tensor, num_groups: int) -> Tensor:
        groups = torch.arange(len(steps), device=self.device) % num_groups
        addresses = steps.data_ptr() + 4 * torch.arange(len(steps), device=self.device)
        return torch.stack([addresses, groups], dim=1)

    def group(self, values: list[float], tensors: dict[int, Tensor] | None = None) -> bytes:
        """``Group``: numbers, and the tensors that some of them are to be read from."""
        tensors = tensors or {}
        addresses = [tensors[i].data_ptr() if i in tensors else 0 for i in range(8)]
        wide = sum(1 << i for i, tensor in tensors.items() if tensor.dtype == torch.float64)
        return struct.pack("8d8Qq", *values, *addresses, wide)

    def groups(self, packed: list[bytes]) -> Tensor:
        words = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.int64)
        return words.view(len(packed), -1).to(self.device)

    def prepare(self, counts: Tensor, groups: Tensor, control: Tensor | None = None) -> Tensor:
        from adamod_fused.triton_kernels import engine

        return engine.prepare("adamod", counts, groups, NUM_SCALARS, control)

    def check_steps(self, done: Tensor) -> None:
        """From the steps done so far, by all groups in turn."""
        steps = done.float().to(self.device)
        groups = self.groups([self.group(in_order(group)) for group in GROUPS])
        scalars = self.prepare(self.counts(steps, len(GROUPS)), groups)
        expected = (done.float() + 1).long()
        assert_same_bits(steps, expected.float(), "steps")
        assert_same_bits(scalars, prepared(expected, GROUPS), "scalars")

    def test_first_steps(self):
        self.check_steps(torch.arange(40).repeat_interleave(len(GROUPS)))

    def test_thousands_of_steps(self):
        self.check_steps(torch.arange(3000))

    def test_steps_to_the_end_of_float32(self):
        """Beyond 2^24 a float32 does not count any further; a loaded step may be larger still."""
        powers = [2**k + d for k in range(12, 25) for d in (-2, -1, 0, 1)]
        done = torch.tensor([*powers, 2**25, 3 * 2**30, 2**40, 2**62])
        self.check_steps(done.repeat_interleave(len(GROUPS)))

    def test_order_of_operations(self):
        """Where one rounding in float64 more, less or elsewhere is another float32 number."""
        groups, steps = [], [1, 3, 10, 50]
        beta1, beta2 = 0.9, 0.999
        for step in steps:
            bc1, root = 1 - integer_power(beta1, step), math.sqrt(1 - integer_power(beta2, step))
            lr = near_a_tie(3e-3, lambda lr, b=bc1, r=root: (lr * r / b, lr / b * r))
            groups.append({**GROUPS[2], "betas": (beta1, beta2), "lr": lr})
        done = torch.tensor(steps).float().to(self.device) - 1
        packed = self.groups([self.group(in_order(group)) for group in groups])
        scalars = self.prepare(self.counts(done, len(groups)), packed)
        assert_same_bits(scalars, prepared(torch.tensor(steps), groups), "scalars")

    @pytest.mark.parametrize("num_rows", [1, 2, 31, 32, 33, 64, 65])
    def test_any_number_of_rows(self, num_rows):
        steps = torch.full((num_rows + 64,), 5.0, device=self.device)
        groups = self.groups([self.group(in_order(group)) for group in GROUPS])
        counts = self.counts(steps, len(GROUPS))[:num_rows]
        scalars = self.prepare(counts, groups)
        assert scalars.shape == (num_rows, NUM_SCALARS)
        assert_same_bits(scalars, prepared(torch.full((num_rows,), 6), GROUPS), "scalars")
        assert (steps[:num_rows] == 6).all()
        assert (steps[num_rows:] == 5).all()

    def test_no_rows(self):
        counts = torch.empty(0, 2, dtype=torch.int64, device=self.device)
        groups = self.groups([self.group(in_order(GROUPS[0]))])
        assert self.prepare(counts, groups).shape == (0, NUM_SCALARS)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_hyperparameters_in_tensors(self, dtype):
        """Each one in turn, and all together; read again at every step."""
        names = ("lr", "beta1", "beta2", "beta3", "eps", "weight_decay", "maximize", "released")
        subsets = [[], *([i] for i in range(8)), list(range(8))]
        other = torch.float32 if dtype == torch.float64 else torch.float64
        storages = [torch.zeros(8, dtype=dtype if i != 3 else other) for i in range(8)]
        storages = [storage.to(self.device) for storage in storages]
        values = in_order(GROUPS[0])
        groups = self.groups(
            [
                self.group(
                    [torch.nan if i in subset else value for i, value in enumerate(values)],
                    {i: storages[i][3] for i in subset},
                )
                for subset in subsets
            ]
        )
        steps = torch.zeros(len(subsets), device=self.device)
        counts = self.counts(steps, len(subsets))
        for step, given in enumerate((in_order(GROUPS[11]), in_order(GROUPS[6])), start=1):
            for storage, value in zip(storages, given, strict=True):
                storage[3] = value
            scalars = self.prepare(counts, groups)
            for row, subset in enumerate(subsets):
                h = {
                    name: storages[i][3].item() if i in subset else values[i]
                    for i, name in enumerate(names)
                }
                expected = AdaMod.prepare(
                    step,
                    lr=h["lr"],
                    betas=(h["beta1"], h["beta2"]),
                    beta3=h["beta3"],
                    eps=h["eps"],
                    weight_decay=h["weight_decay"],
                    maximize=h["maximize"] != 0,
                    variant="released" if h["released"] else "paper",
                )
                expected = torch.tensor(expected, dtype=torch.float64).float()
                assert_same_bits(scalars[row], expected, f"from tensors: {subset}")

    def test_skipped_step_is_not_counted(self):
        steps = torch.full((40,), 5.0, device=self.device)
        groups = self.groups([self.group(in_order(group)) for group in GROUPS])
        counts = self.counts(steps, len(GROUPS))
        for skip in (1.0, -2.0, torch.nan):
            self.prepare(counts, groups, torch.tensor([1.0, skip], device=self.device))
            assert (steps == 5).all()
        self.prepare(counts, groups, torch.tensor([1.0, 0.0], device=self.device))
        assert (steps == 6).all()

    def test_skip_reads_nothing(self):
        """Null addresses would be a fault."""
        counts = torch.zeros(40, 2, dtype=torch.int64, device=self.device)
        control = torch.tensor([1.0, 1.0], device=self.device)
        self.prepare(counts, self.groups([self.group(in_order(GROUPS[0]))]), control)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def test_step_with_them(self):
        """Three steps, the second skipped, as an optimizer that keeps its steps on the device."""
        generator = torch.Generator().manual_seed(1)
        sizes = [numel for numel in SIZES if numel < 2000]
        rows = [
            make_row(n, torch.float32, [0] * 5, i, generator, device=self.device)
            for i, n in enumerate(sizes)
        ]
        steps = torch.zeros(len(rows), device=self.device)
        counts = self.counts(steps, len(GROUPS))
        groups = self.groups([self.group(in_order(group)) for group in GROUPS])
        for skip in (0.0, 1.0, 0.0):
            control = torch.tensor([0.25, skip], device=self.device)
            launch("adamod", rows, self.prepare(counts, groups, control).tolist(), control)
            for row in rows if not skip else ():
                step = int(steps[row.scalars])
                scalars = rounded(AdaMod.prepare(step, **GROUPS[row.scalars % len(GROUPS)]))
                update_expected(row, scalars, 0.25)
            check(rows)
        assert (steps == 2).all()

    def test_rule_never_seen(self, monkeypatch):
        from adamod_fused.triton_kernels import engine, rules

        rule = rules.Rule(None, prepare_momentum, None, num_states=1)
        monkeypatch.setitem(rules.RULES, "momentum", rule)
        steps = torch.arange(40.0, device=self.device)
        groups = self.groups([self.group([lr, 0.75, *[0.0] * 6]) for lr in (0.5, 2.0, 3.0)])
        scalars = engine.prepare("momentum", self.counts(steps, 3), groups, 2)
        step = torch.arange(1.0, 41.0)
        expected = torch.stack(
            [torch.full((40,), 0.75), torch.tensor([0.5, 2.0, 3.0]).repeat(14)[:40] / step], dim=1
        )
        assert_same_bits(scalars, expected, "scalars")


@triton.jit
def prepare_momentum(scalars, step, lr, momentum, h2, h3, h4, h5, h6, h7):
    tl.store(scalars + 0, momentum)
    tl.store(scalars + 1, lr / step.to(tl.float64))


class TestInterpreted(Cases, Interpreted):
    __test__ = INTERPRETED
    device = "cpu"


@pytest.mark.gpu
class TestOnGpu(Cases):
    __test__ = not INTERPRETED
    device = "cuda"
