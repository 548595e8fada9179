"""A Triton step under a control on the device: gradients are scaled, or nothing is done at all."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES
from interpreted import INTERPRETED, InChildProcess, Interpreted
from triton_rows import HYPERPARAMETERS, check, launch, make_row, rounded, update_expected

from adamod_fused.reference import AdaMod

pytest.importorskip("triton", reason="the Triton backend needs triton")

SCALARS = [
    rounded(AdaMod.prepare(2 + i, maximize=i % 2 == 1, **hyperparameters))
    for i, hyperparameters in enumerate(HYPERPARAMETERS)
]


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


class Cases:
    """What holds in the interpreter and on a GPU."""

    device = ""

    @pytest.fixture
    def generator(self):
        return torch.Generator().manual_seed(20191012)

    def rows(self, dtype, generator):
        sizes_and_offsets = [(5000, 0), (1030, 1), (0, 0), (3, 0)]
        return [
            make_row(numel, dtype, [offset] * 5, i, generator, device=self.device)
            for i, (numel, offset) in enumerate(sizes_and_offsets)
        ]

    @pytest.mark.parametrize("grad_scale", [0.37 / 65536, 3e5, 1.0, 0.0, torch.inf, torch.nan])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradients_are_scaled(self, dtype, grad_scale, generator):
        rows = self.rows(dtype, generator)
        launch("adamod", rows, SCALARS, torch.tensor([grad_scale, 0.0], device=self.device))
        for row in rows:
            update_expected(row, SCALARS[row.scalars], grad_scale)
        check(rows)

    @pytest.mark.parametrize("skip", [-0.0, 0.0])
    def test_zero_of_either_sign_does_not_skip(self, skip, generator):
        rows = self.rows(torch.float32, generator)
        launch("adamod", rows, SCALARS, torch.tensor([0.5, skip], device=self.device))
        for row in rows:
            update_expected(row, SCALARS[row.scalars], 0.5)
        check(rows)

    @pytest.mark.parametrize("skip", [1.0, -1.0, 1e-45, torch.inf, torch.nan])
    def test_skip_leaves_every_bit(self, skip, generator):
        rows = self.rows(torch.float32, generator)
        launch("adamod", rows, SCALARS, torch.tensor([torch.nan, skip], device=self.device))
        check(rows)

    def test_skip_reads_no_tensor(self):
        """A table of null addresses would be a fault."""
        from adamod_fused.triton_kernels import engine

        table = torch.tensor([[0] * 5 + [5000, 0, 0]], device=self.device)
        scalars = torch.zeros(1, len(AdaMod.Scalars._fields), device=self.device)
        control = torch.tensor([1.0, 1.0], device=self.device)
        engine.step("adamod", torch.float32, table, scalars, 2, control)
        if self.device == "cuda":
            torch.cuda.synchronize()


class TestInterpreted(Cases, Interpreted):
    __test__ = INTERPRETED
    device = "cpu"


@pytest.mark.gpu
class TestOnGpu(Cases):
    __test__ = not INTERPRETED
    device = "cuda"
