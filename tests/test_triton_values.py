"""The Triton conversions of states: the bits of codes.py, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch
from coded_values import KINDS_OF_RULES, encoded, values_of
from helpers import assert_same_bits
from interpreted import INTERPRETED, InChildProcess, Interpreted
from triton_rows import Guarded

from adamod_fused import codes
from adamod_fused.backends.triton import TritonBackend
from adamod_fused.coding import VALUE_DTYPES

pytest.importorskip("triton", reason="the Triton backend needs triton")

SIZES = (0, 1, 31, 32, 33, 1023, 1024, 1025, 2081)  # about a block, and what a program takes


class TestInChildProcess(InChildProcess):
    __test__ = not INTERPRETED


class Cases:
    """What holds in the interpreter and on a GPU."""

    device = ""

    @pytest.mark.parametrize("num_bytes", [1, 2])
    @pytest.mark.parametrize("kinds", KINDS_OF_RULES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bits_are_the_oracles(self, kinds, num_bytes, dtype):
        backend = TritonBackend()
        for numel in SIZES:
            values = [values_of(kind, numel, k).to(dtype) for k, kind in enumerate(kinds)]
            coded, exponents = encoded(kinds, num_bytes, [value.float() for value in values])
            given = [Guarded(value, numel % 3, self.device) for value in values]
            made = [Guarded(torch.zeros_like(c), numel % 5, self.device) for c in coded]
            flat = Guarded(torch.zeros_like(exponents).flatten(), 1, self.device)
            shared = flat.tensor.view(exponents.shape)
            backend.encode(kinds, [g.tensor for g in given], [m.tensor for m in made], shared)
            flat.assert_equal(exponents.flatten(), f"exponents of {numel}")
            for k in range(len(kinds)):
                made[k].assert_equal(coded[k], f"codes {k} of {numel}")

            room = torch.zeros(numel, dtype=VALUE_DTYPES[coded[0].dtype])
            found = [Guarded(room, numel % 3, self.device) for _ in kinds]
            backend.decode(kinds, [m.tensor for m in made], shared, [f.tensor for f in found])
            for k, wanted in enumerate(codes.decode(kinds, coded, exponents)):
                assert_same_bits(found[k].tensor.cpu().float(), wanted, f"values {k} of {numel}")
                found[k].assert_equal(found[k].tensor.cpu().clone(), "around them")

    def test_state_dicts_take_the_kernels(self, monkeypatch):
        """The whole way, out and in again."""
        from adamod_fused import AdaMod, backends

        monkeypatch.setattr(codes, "encode", lambda *_: pytest.fail("the oracle encoded"))
        monkeypatch.setattr(codes, "decode", lambda *_: pytest.fail("the oracle decoded"))
        backend = backends._BACKENDS["triton"]
        monkeypatch.setattr(backends, "_BACKENDS", {"triton": backend})
        param = torch.nn.Parameter(torch.randn(65, 65, device=self.device))
        optimizer = AdaMod([param], state_format="8bit")
        param.grad = torch.randn_like(param)
        optimizer.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        again = optimizer.state_dict()["state"][0]
        for name in AdaMod.rule.states:
            assert saved["state"][0][name].dtype == torch.bfloat16
            assert torch.equal(again[name], saved["state"][0][name])


class TestInterpreted(Cases, Interpreted):
    __test__ = INTERPRETED
    device = "cpu"


@pytest.mark.gpu
class TestOnGpu(Cases):
    __test__ = not INTERPRETED
    device = "cuda"
