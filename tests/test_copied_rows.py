"""Gradients and parameters in another layout than their states: copies exist for a round each."""

from __future__ import annotations

import weakref

import pytest
import torch
from helpers import STATES, assert_same_bits

import adamod_fused.kernels
from adamod_fused import AdaMod, backends


def make(backend: str, **options) -> AdaMod:
    torch.manual_seed(5)
    shapes = ((70, 60), (64, 128), (3, 5), (90, 50), (33, 31), (0, 4))
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    params.append(torch.nn.Parameter(torch.randn(40, 60)[:, ::2]))  # itself with gaps
    return AdaMod(params, lr=0.1, weight_decay=0.1, backend=backend, min_coded_numel=0, **options)


def set_grads(optimizer: AdaMod, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for i, param in enumerate(optimizer.param_groups[0]["params"]):
        grad = torch.randn(param.shape, generator=generator)
        if i % 2 == 0:
            grad = grad.t().contiguous().t()
        param.grad = grad


@pytest.mark.parametrize("state_format", ["fp32", "8bit"])
@pytest.mark.parametrize("round_numel", [1, 5000, 1 << 22])
def test_rounds_change_no_bit(
    state_format: str, round_numel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adamod_fused.kernels, "ROUND_NUMEL", round_numel)
    ours = make("cpu", state_format=state_format, track_bound=1)
    expected = make("reference", state_format=state_format, track_bound=1)
    for step in range(3):
        for optimizer in (ours, expected):
            set_grads(optimizer, step)
            optimizer.step()
    for a, b in zip(
        ours.param_groups[0]["params"], expected.param_groups[0]["params"], strict=True
    ):
        assert_same_bits(a, b)
        for name in ("step", *STATES):
            assert_same_bits(ours.state[a][name], expected.state[b][name], name)
    assert ours.bound_stats() == expected.bound_stats()


@pytest.mark.parametrize("capturable", [False, True])
def test_rounds_on_the_cuda_engine(
    capturable: bool, emulated_cuda: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adamod_fused.kernels, "ROUND_NUMEL", 5000)
    expected = make("reference", state_format="8bit")
    set_grads(expected, 0)
    expected.step()
    monkeypatch.setattr("adamod_fused.plan.choose", lambda *_, **__: emulated_cuda)
    ours = make("cpu", state_format="8bit", capturable=capturable)
    set_grads(ours, 0)
    ours.step()
    for a, b in zip(
        ours.param_groups[0]["params"], expected.param_groups[0]["params"], strict=True
    ):
        assert_same_bits(a, b)


def test_copies_of_one_round_exist_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamod_fused.kernels, "ROUND_NUMEL", 1)
    alive, most = [], []
    lay = adamod_fused.kernels.laid_out

    def laid_out(tensor, layout):
        made = lay(tensor, layout)
        if made is not tensor:
            alive.append(weakref.ref(made))
            most.append(sum(copy() is not None for copy in alive))
        return made

    monkeypatch.setattr(adamod_fused.kernels, "laid_out", laid_out)
    optimizer = make("cpu")
    set_grads(optimizer, 0)
    optimizer.step()
    assert len(most) >= 4
    assert max(most) <= 3  # a parameter and its gradient, and what the round before just leaves
