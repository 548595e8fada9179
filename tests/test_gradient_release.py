"""release_gradients: the same bits as stepping after backward, and less memory at its peak."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from helpers import OPTIONS, assert_same_training, launching, params_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from adamod_fused import AdaMod, release_gradients
from adamod_fused.backends.cpu import CpuBackend


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    shared = nn.Linear(16, 16)  # used twice: its gradient is complete after both
    layers = [nn.Linear(8, 16), nn.Tanh(), shared, nn.Tanh(), shared, nn.LayerNorm(16)]
    return nn.Sequential(*layers, nn.Linear(16, 1)).to(dtype)


def make_pair(backend: str, dtype: torch.dtype = torch.float32) -> list[tuple[nn.Module, AdaMod]]:
    pairs = []
    for _ in range(2):
        model = make_model(dtype)
        params = list(model.parameters())
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.01, "betas": (0.5, 0.9)}]
        pairs.append((model, AdaMod(groups, **OPTIONS, backend=backend)))
    return pairs


def backward(model: nn.Module, seed: int) -> None:
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    model(inputs).square().mean().backward()


@pytest.mark.parametrize("batch_numel", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits(dtype: torch.dtype, batch_numel: int, backend: str) -> None:
    (model, optimizer), (twin_model, twin) = make_pair(backend, dtype)
    release_gradients(model, optimizer, batch_numel=batch_numel)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (optimizer, twin)]
    for step in range(4):
        backward(model, step)
        backward(twin_model, step)
        optimizer.step()
        twin.step()
        twin.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
        assert all(param.grad is None for param in params_of(optimizer))
        assert_same_training(optimizer, twin)


def test_gradients_are_freed_during_backward() -> None:
    (model, optimizer), _ = make_pair("cpu")
    counts = []
    for param in params_of(optimizer):  # called when one more gradient is about to be there
        param.register_hook(lambda _: counts.append(sum(p.grad is not None for p in params)))
    params = params_of(optimizer)
    release_gradients(model, optimizer, batch_numel=1)
    backward(model, 0)
    assert len(counts) == len(params)
    assert set(counts) == {0}


def test_small_tensors_share_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    (model, optimizer), _ = make_pair("cpu")
    sizes = sum(param.numel() for param in params_of(optimizer))
    launches = []
    counted = launching(lambda launch, *_: (launches.append(1), launch()))
    monkeypatch.setattr(CpuBackend, "launcher", counted)
    handle = release_gradients(model, optimizer, batch_numel=1)
    backward(model, 0)
    assert len(launches) == len(params_of(optimizer))
    handle.remove()
    launches.clear()
    release_gradients(model, optimizer, batch_numel=sizes // 2)
    backward(model, 1)
    optimizer.step()
    assert len(launches) == 2


def test_removed_it_is_as_before() -> None:
    (model, optimizer), (twin_model, twin) = make_pair("cpu")
    release_gradients(model, optimizer, batch_numel=1).remove()
    backward(model, 0)
    backward(twin_model, 0)
    assert all(param.grad is not None for param in params_of(optimizer))
    norm = optimizer.clip_grad_norm_(0.1)
    assert norm == twin.clip_grad_norm_(0.1)
    optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)


def test_what_needs_all_gradients_says_so() -> None:
    (model, optimizer), _ = make_pair("cpu")
    release_gradients(model, optimizer)
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"clip_grad_norm_\(\) needs all gradients .*remove\(\)"):
        optimizer.clip_grad_norm_(1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match=r"a GradScaler needs all gradients .*remove\(\)"):
        scaler.step(optimizer)


def test_a_scaler_after_steps_were_done() -> None:
    """The error comes when the scaler does; what backward has stepped by then stays so."""
    (model, optimizer), _ = make_pair("cpu")
    release_gradients(model, optimizer, batch_numel=1)
    before = [param.detach().clone() for param in params_of(optimizer)]
    backward(model, 0)
    assert not any(map(torch.equal, before, params_of(optimizer)))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises((RuntimeError, AssertionError)):
        scaler.step(optimizer)


@pytest.mark.parametrize("again", ["load", "compiled"])
def test_it_outlives_what_makes_the_optimizer_anew(again: str) -> None:
    (model, optimizer), (twin_model, twin) = make_pair("cpu")
    release_gradients(model, optimizer, batch_numel=300)
    step = optimizer.step
    if again == "compiled":
        step = torch.compile(optimizer.step, backend="eager")
    for seed in range(3):
        if again == "load":
            for each in (optimizer, twin):
                each.load_state_dict(copy.deepcopy(each.state_dict()))
        backward(model, seed)
        backward(twin_model, seed)
        step()
        twin.step()
        twin.zero_grad()
        assert all(param.grad is None for param in params_of(optimizer))
        assert_same_training(optimizer, twin)


def test_a_copy_of_the_optimizer_is_not_released() -> None:
    (model, optimizer), _ = make_pair("cpu")
    release_gradients(model, optimizer)
    both = copy.deepcopy(optimizer)
    assert both.clip_grad_norm_(1.0) == 0.0


class Repeated(nn.Module):
    """One layer, used in segments of checkpoints and, if so asked, outside of them."""

    def __init__(self, reentrant: bool, segments: int = 3, outside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer = nn.Linear(8, 8), nn.Linear(8, 8)
        self.reentrant, self.segments, self.outside = reentrant, segments, outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(self.segments):
            x = checkpoint(lambda x: self.layer(x).tanh(), x, use_reentrant=self.reentrant)
        return self.layer(x) if self.outside else x


def make_repeated(*arguments: Any, **keywords: Any) -> list[tuple[nn.Module, AdaMod]]:
    models = [Repeated(*arguments, **keywords) for _ in range(2)]
    return [(model, AdaMod(model.parameters(), **OPTIONS)) for model in models]


@pytest.mark.parametrize(
    ("reentrant", "segments", "outside", "batch_numel"),
    [(False, 3, True, 1), (True, 1, False, 1), (True, 3, True, 1 << 20)],
    ids=["not reentrant", "one segment", "waiting"],
)
def test_checkpoints_train_alike(
    reentrant: bool, segments: int, outside: bool, batch_numel: int
) -> None:
    (model, optimizer), (twin_model, twin) = make_repeated(reentrant, segments, outside)
    release_gradients(model, optimizer, batch_numel=batch_numel)
    for step in range(3):
        backward(model, step)
        backward(twin_model, step)
        optimizer.step()
        twin.step()
        twin.zero_grad()
        assert_same_training(optimizer, twin)


@pytest.mark.parametrize(("segments", "outside"), [(3, False), (1, True)])
def test_no_parameter_is_stepped_twice_in_a_backward_pass(segments: int, outside: bool) -> None:
    """Reentrant segments are backward passes of their own."""
    (model, optimizer), _ = make_repeated(True, segments, outside)
    release_gradients(model, optimizer, batch_numel=1)
    message = r"parameter [23] of group 0 has another gradient after .*step\(\) after each backward"
    with pytest.raises(RuntimeError, match=message):
        backward(model, 0)
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {1}
    optimizer.zero_grad()
    optimizer.step()  # ends that pass
    assert not any(param.grad is not None for param in params_of(optimizer))


@pytest.mark.parametrize("batch_numel", [1, 1 << 20])
@pytest.mark.parametrize("again", ["backward", "retained"])
def test_two_backward_passes_before_a_step(again: str, batch_numel: int) -> None:
    """Gradients that still wait are added up; others are an error, ours or autograd's."""
    (model, optimizer), (twin_model, twin) = make_pair("cpu")
    release_gradients(model, optimizer, batch_numel=batch_numel)

    def run(model: nn.Module) -> None:
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        loss = model(inputs).square().mean()
        loss.backward(retain_graph=again == "retained")
        if again == "retained":
            loss.backward()
        else:
            backward(model, 1)

    if batch_numel == 1:
        with pytest.raises(RuntimeError, match=r"another gradient after|modified by an inplace"):
            run(model)
        assert {int(entry["step"]) for entry in optimizer.state.values()} == {1}
        return
    run(model)
    run(twin_model)
    optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)


def test_a_gradient_after_the_backward_that_stepped_it() -> None:
    """Also where no hook sees it."""
    (model, optimizer), _ = make_pair("cpu")
    release_gradients(model, optimizer, batch_numel=1)
    backward(model, 0)
    params_of(optimizer)[0].grad = torch.ones_like(params_of(optimizer)[0])
    with pytest.raises(RuntimeError, match="parameter 0 of group 0 has another gradient after"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {1}


@pytest.mark.parametrize("way", ["load", "step"])
def test_training_goes_on_after_a_backward_pass_that_failed(way: str) -> None:
    (model, optimizer), (twin_model, twin) = make_pair("cpu")
    release_gradients(model, optimizer, batch_numel=1)
    for each, other in ((model, optimizer), (twin_model, twin)):
        backward(each, 0)
        other.step()
        other.zero_grad()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    model[0].weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        backward(model, 1)  # has stepped the last layers by then
    model[0].weight._backward_hooks.clear()
    optimizer.zero_grad()
    if way == "load":
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    else:
        with pytest.raises(RuntimeError, match=r"zero_grad\(\) and step\(\) after one that failed"):
            backward(model, 1)
        optimizer.zero_grad()
        optimizer.step()
    backward(model, 1)
    optimizer.step()
    backward(twin_model, 1)
    twin.step()
    if way == "load":
        assert_same_training(optimizer, twin)
    else:
        counts = [int(optimizer.state[param]["step"]) for param in params_of(optimizer)]
        assert (counts[0], counts[-1]) == (2, 3)


@pytest.mark.parametrize("keep_handle", [True, False])
def test_model_and_optimizer_are_collected(keep_handle: bool) -> None:
    (model, optimizer), _ = make_pair("cpu")
    handle = release_gradients(model, optimizer, batch_numel=1)
    backward(model, 0)
    optimizer.step()
    gone = [weakref.ref(each) for each in (model, optimizer, *model.parameters())]
    if not keep_handle:
        del handle
    del model, optimizer, _
    gc.collect()
    assert not any(each() is not None for each in gone)


def test_a_model_that_outlives_its_optimizer() -> None:
    (model, optimizer), (twin_model, _) = make_pair("cpu")
    handle = release_gradients(model, optimizer, batch_numel=1)
    del optimizer
    gc.collect()
    backward(model, 0)
    backward(twin_model, 0)
    for param, twin in zip(model.parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(param.grad, twin.grad)
    handle.remove()


def test_bad_input() -> None:
    model = make_model()
    optimizer = AdaMod(model.parameters())
    with pytest.raises(TypeError, match="needs an optimizer of adamod_fused, got Adam"):
        release_gradients(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="batch_numel must be an integer >= 1, got 0"):
        release_gradients(model, optimizer, batch_numel=0)
    with pytest.raises(ValueError, match=r"parameters that the optimizer does not: 0\.weight; add"):
        release_gradients(
            model, AdaMod([p for n, p in model.named_parameters() if n != "0.weight"])
        )
    inner = object.__new__(DistributedDataParallel)
    nn.Module.__init__(inner)
    with pytest.raises(TypeError, match="DistributedDataParallel model: it reduces gradients"):
        release_gradients(nn.ModuleDict({"inner": inner}), optimizer)
    somewhere_else = nn.Linear(2, 2, device="meta")
    two = nn.ModuleList([nn.Linear(2, 2), somewhere_else])
    with pytest.raises(ValueError, match=r"models on one device, got \['cpu', 'meta'\]"):
        release_gradients(two, AdaMod(two.parameters()))
    release_gradients(model, optimizer)
    with pytest.raises(RuntimeError, match="released already"):
        release_gradients(model, optimizer)


PEAK = r"""
import pathlib, re, sys, torch
from adamod_fused import AdaMod, release_gradients
torch.set_num_threads(1)
def peak():  # in KiB; not getrusage's, which a process inherits from the one that started it
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(24)))  # 4 MiB each
optimizer = AdaMod(model.parameters())
def step():
    model(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
for param in model.parameters():  # makes the states with one gradient at a time
    param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad()
before = peak()
if sys.argv[1] == "released":
    release_gradients(model, optimizer)
step()
print(peak() - before)
"""


def peak_kib(how: str) -> int:
    command = [sys.executable, "-c", PEAK, how]
    # What is freed goes back to the system at once, with glibc and with AddressSanitizer.
    options = f"{os.environ.get('ASAN_OPTIONS', '')}:quarantine_size_mb=0"
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "ASAN_OPTIONS": options}
    result = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(result.stdout)


def test_the_peak_of_memory_drops() -> None:
    """Of 96 MiB of gradients a fifth at the most is left."""
    assert peak_kib("kept") > 80 << 10
    assert peak_kib("released") < 20 << 10
