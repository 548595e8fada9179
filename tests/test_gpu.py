"""What a real GPU computes, where test_parity.py does not look: layouts, mixtures, sizes, moves."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from cases import CASES, DTYPES, GROUPS, SIZES
from helpers import assert_same_bits
from test_parity import expected, train
from torch import nn
from twins import CPU, GPU, GPU_BACKENDS, Twins, on_each_backend, tensors

from adamod_fused import AdaMod, backends

pytestmark = pytest.mark.gpu

# One element more than 32 bits with a sign can count, and on to the middle of a chunk.
HUGE = 2**31 + 100_003


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case_index", range(len(CASES)), ids=[c.description for c in CASES])
def test_reference_gives_the_same_bits_on_the_gpu(case_index: int, dtype: torch.dtype) -> None:
    actual = train(CASES[case_index], dtype, GPU, "reference")
    for step, (got, wanted) in enumerate(zip(actual, expected(case_index, dtype), strict=True)):
        for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert_same_bits(a, b, f"tensor {i} after step {step + 1}")


# Of a tensor of four dimensions: how the parameter lies in memory.
LAYOUTS = {
    "as it comes": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "misaligned": lambda x: x.flatten()[1:],
    "misaligned by two": lambda x: x.flatten()[2:].view(-1, 2),
    "permuted": lambda x: x.permute(3, 1, 0, 2),
    "with gaps": lambda x: x[..., ::2],
    "a slice of channels": lambda x: x[:, 1:],
    "empty": lambda x: x[:0],
    "one element": lambda x: x[:1, :1, :1, :1],
    "0-dim": lambda x: x[0, 0, 0, 0],
}


@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_in_one_step(backend: str, dtype: torch.dtype) -> None:
    values = tensors([(6, 8, 5, 7)] * len(LAYOUTS) * 3, dtype, seed=2)
    twins = Twins(backend, values, layouts=list(LAYOUTS.values()))
    for step in range(4):
        twins.step()
        twins.check(f"after step {step + 1} ({', '.join(LAYOUTS)})")


@on_each_backend
def test_gradients_laid_out_as_the_parameter_is_not(backend: str) -> None:
    values = tensors([(6, 8, 5, 7)] * 2, torch.float32, seed=3)
    channels_last = LAYOUTS["channels last"]
    layouts = [LAYOUTS["as it comes"], channels_last]
    twins = Twins(backend, values, groups=GROUPS[:2], layouts=layouts)
    for step in range(4):
        twins.new_grads()
        for i, param in enumerate(twins.params):
            relaid = channels_last if (step + i) % 2 else torch.Tensor.contiguous
            param.grad = relaid(param.grad)
        twins.optimizer.step()
        twins.twin_optimizer.step()
        twins.check(f"after step {step + 1}")


@on_each_backend
def test_dtypes_and_groups_in_one_optimizer(backend: str) -> None:
    values = [v for i, dtype in enumerate(DTYPES) for v in tensors(SIZES, dtype, seed=i)]
    twins = Twins(backend, values)  # 16 sizes, 3 groups: every dtype is in every group
    for step in range(4):
        twins.step()
        twins.check(f"after step {step + 1}")


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, None])
def test_cpu_and_gpu_in_one_optimizer(backend: str | None) -> None:
    twins = Twins(
        backend,
        tensors(SIZES, torch.float32, seed=4),
        groups=GROUPS[:2],
        devices=[GPU, CPU],
    )
    twins.step(4)
    twins.check()


@on_each_backend
def test_two_gpus_in_one_optimizer(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, here is {torch.cuda.device_count()}")
    values = tensors(SIZES, torch.float32, seed=5)
    twins = Twins(backend, values, devices=[GPU, torch.device("cuda", 1)])
    twins.step(4)
    twins.check()
    assert torch.cuda.current_device() == 0


def test_float64_falls_to_the_reference_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    values = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    params = [nn.Parameter(values.to(device, copy=True)) for device in (GPU, GPU, CPU)]
    optimizers = [AdaMod([param], **GROUPS[0]) for param in params]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            for param, optimizer in zip(params, optimizers, strict=True):
                param.grad = (values * (step + 1)).sin().to(param.device)
                optimizer.step()
    messages = [str(w.message) for w in caught if "pure-PyTorch reference" in str(w.message)]
    assert len(messages) == 1
    assert "torch.float64 tensors on cuda" in messages[0]
    # Unlike a float32 one, a float64 square root is not correctly rounded on every CPU. An error
    # of 2^-52 in it changes three updates of at most lr = 0.01 by 1e-17 each, and so a param,
    # which is below 2, by no more than one rounding a step: 3 * 2^-53 < 1e-15.
    for param in params[:2]:
        torch.testing.assert_close(param.cpu(), params[2], rtol=0, atol=1e-15)


@on_each_backend
def test_float64_is_refused_by_a_named_backend(backend: str) -> None:
    param = nn.Parameter(torch.ones(5, dtype=torch.float64, device=GPU))
    param.grad = torch.ones_like(param)
    optimizer = AdaMod([param], backend=backend)
    with pytest.raises(ValueError, match=r"cannot serve a torch\.float64 tensor on cuda:0"):
        optimizer.step()
    assert torch.equal(param.cpu(), torch.ones(5, dtype=torch.float64))
    assert not optimizer.state[param]


@on_each_backend
def test_gradients_that_move_into_reused_memory(backend: str) -> None:
    twins = Twins(backend, tensors(SIZES * 2, torch.bfloat16, seed=6))
    generator = torch.Generator().manual_seed(7)
    for step in range(10):
        twins.optimizer.zero_grad(set_to_none=True)
        if step % 3 == 2:
            torch.cuda.empty_cache()
        # Takes the memory that held gradients, in other pieces, and gives some of it back.
        sizes = torch.randint(1, 70_000, (60,), generator=generator).tolist()
        others = [torch.full((size,), torch.nan, device=GPU) for size in sizes]
        del others[::2]
        twins.step()
        twins.check(f"after step {step + 1}")
        del others


def make_model() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 7))


def set_grads(model: nn.Module, seed: int) -> None:
    params = list(model.parameters())
    grads = tensors([tuple(param.shape) for param in params], torch.float32, seed)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.to(param.device)


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, None])
def test_model_moved_before_the_first_step(backend: str | None) -> None:
    model, twin = make_model(), make_model()
    optimizer = AdaMod(model.parameters(), backend=backend, **GROUPS[0])
    twin_optimizer = AdaMod(twin.parameters(), backend="cpu", **GROUPS[0])
    model.to(GPU)
    for step in range(3):
        set_grads(model, step)
        set_grads(twin, step)
        optimizer.step()
        twin_optimizer.step()
    for (name, param), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert param.device == GPU
        assert_same_bits(param, other, name)
        for key, state in optimizer.state[param].items():
            assert_same_bits(state, twin_optimizer.state[other][key], f"{key} of {name}")


@pytest.mark.parametrize(("start", "end"), [(CPU, GPU), (GPU, CPU)], ids=["to GPU", "to CPU"])
def test_model_moved_after_the_first_step(start: torch.device, end: torch.device) -> None:
    model = make_model().to(start)
    optimizer = AdaMod(model.parameters(), **GROUPS[0])
    set_grads(model, 0)
    optimizer.step()
    model.to(end)
    set_grads(model, 1)
    before = [param.detach().clone() for param in model.parameters()]
    message = f"exp_avg of parameter 0 of group 0 is on {start}, the parameter on {end}; move the"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    for param, old in zip(model.parameters(), before, strict=True):
        assert_same_bits(param, old)

    optimizer.load_state_dict(optimizer.state_dict())  # the remedy that the message names
    optimizer.step()


@on_each_backend
def test_ten_thousand_tensors(backend: str) -> None:
    twins = Twins(backend, tensors([64] * 10_000, torch.float32, seed=9))
    twins.step(3)
    twins.check()


def need_room_for_huge() -> None:
    """Skips where a bfloat16 parameter of HUGE elements and all that its step takes do not fit."""
    torch.cuda.empty_cache()
    needed = HUGE * (2 + 2 + 3 * 4) + 2**30  # bf16 param and grad, three states; and room
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory, here are {free >> 30}")


@on_each_backend
def test_more_elements_than_32_bits_count(backend: str) -> None:
    need_room_for_huge()
    generator = torch.Generator(GPU).manual_seed(10)
    param, grad = (torch.empty(HUGE, dtype=torch.bfloat16, device=GPU) for _ in range(2))
    param = nn.Parameter(param.normal_(generator=generator))
    optimizer = AdaMod([param], backend=backend, **GROUPS[0])

    # The rule is elementwise: a part of the tensor stepped by itself says what it must become.
    middle = HUGE - 100_003
    looked_at = [
        slice(0, 70_000),
        slice(middle - 70_000, middle + 70_000),
        slice(HUGE - 20_000, HUGE),
        slice(0, HUGE, 1_000_003),
    ]

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor.detach()[part].cpu() for part in looked_at])

    twin = nn.Parameter(seen(param))
    twin_optimizer = AdaMod([twin], backend="cpu", **GROUPS[0])
    for _ in range(2):
        param.grad = grad.normal_(generator=generator)
        twin.grad = seen(grad)
        optimizer.step()
        twin_optimizer.step()
    assert_same_bits(seen(param), twin)
    for name in optimizer.rule.states:
        assert_same_bits(seen(optimizer.state[param][name]), twin_optimizer.state[twin][name], name)


@on_each_backend
def test_the_norm_of_more_elements_than_32_bits_count(backend: str) -> None:
    need_room_for_huge()
    param = nn.Parameter(torch.zeros(HUGE, dtype=torch.bfloat16, device=GPU))
    generator = torch.Generator(GPU).manual_seed(11)
    param.grad = torch.empty_like(param).normal_(1e-4, 1e-3, generator=generator)
    norm = AdaMod([param], backend=backend).clip_grad_norm_(1.0)
    parts = param.grad.split(1_000_003)
    exact = math.sqrt(math.fsum(part.double().square().sum().item() for part in parts))
    assert abs(norm.item() / exact - 1) < 2.0**-23  # rounded to float32, of sums in float64
