"""Mixed precision: torch's GradScaler unscales, skips and clips in the step, and writes nothing.

On a machine without a GPU the scaler works on the CPU, and what a GPU counts by itself is shown by
the CUDA engine, emulated.
"""

from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from helpers import (
    OPTIONS,
    Snapshot,
    assert_same_bits,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train_step,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from adamod_fused import AdaMod
from adamod_fused.control import clip_of, control
from adamod_fused.formats import EXPONENTS

pytestmark = pytest.mark.usefixtures("state_format")

SCALE = 2.0**10


@pytest.fixture(params=["cpu", "reference", "cuda"])
def any_backend(request: pytest.FixtureRequest) -> str:
    """Also the CUDA engine, emulated: on tensors of the CPU."""
    if request.param == "cuda":
        request.getfixturevalue("emulated_as_cuda")
    return request.param


def make_scaler(scale: float = SCALE) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    scaler.scale(torch.ones(()))  # makes its tensors
    return scaler


def set_scaled_grads(optimizer: AdaMod, seed: int, scale: float) -> None:
    set_random_grads(params_of(optimizer), seed)
    for param in params_of(optimizer):
        param.grad.mul_(scale)


@pytest.mark.parametrize("how", ["plain", "unscaled", "folded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scaled_gradients_train_as_unscaled_ones(
    dtype: torch.dtype, how: str, any_backend: str
) -> None:
    scaled, plain = make_optimizer(dtype, backend=any_backend), make_optimizer(dtype)
    scaler = make_scaler()
    for step in range(7):  # the scale doubles after three
        scale = scaler.get_scale()
        set_scaled_grads(scaled, step, scale)
        set_scaled_grads(plain, step, 1.0)
        before = [param.grad.clone() for param in params_of(scaled)]
        if how == "unscaled":
            scaler.unscale_(scaled)
        elif how == "folded":
            scaled.clip_grad_norm_(math.inf, grad_scaler=scaler)
        scaler.step(scaled)
        scaler.update()
        plain.step()
        if how == "folded":
            for param, grad in zip(params_of(scaled), before, strict=True):
                assert_same_bits(param.grad, grad)
    assert scaler.get_scale() == 4 * SCALE
    assert_same_training(scaled, plain)
    assert not hasattr(scaled, "grad_scale")


def test_a_scaler_unscales_and_skips_itself_until_a_clip_is_told_of_it() -> None:
    """Trainers read this attribute to decide whether they can clip."""
    optimizer, scaler = make_optimizer(), make_scaler()
    assert not optimizer._step_supports_amp_scaling
    for told in (True, False):
        set_scaled_grads(optimizer, 0, SCALE)
        optimizer.clip_grad_norm_(0.3, grad_scaler=scaler if told else None)
        assert optimizer._step_supports_amp_scaling == told
        scaler.step(optimizer)
        scaler.update()
        assert not optimizer._step_supports_amp_scaling


def test_a_skipped_step_is_not_called() -> None:
    """As with torch's optimizers: what counts calls of step() counts the steps that were done."""
    optimizer, scaler, called = make_optimizer(), make_scaler(), []
    optimizer.register_step_post_hook(lambda *_: called.append(True))
    for seed, value in enumerate((1.0, math.inf, 1.0)):
        set_scaled_grads(optimizer, seed, value)
        scaler.step(optimizer)
        scaler.update()
    assert len(called) == 2


def test_a_scale_that_is_no_power_of_two(any_backend: str) -> None:
    """Gradients are multiplied by its inverse, rounded once, as by ``GradScaler.unscale_``."""
    folded, unscaled = make_optimizer(backend=any_backend), make_optimizer(backend="reference")
    for optimizer, unscale in ((folded, False), (unscaled, True)):
        scaler = make_scaler(1000.0)
        for step in range(3):
            set_scaled_grads(optimizer, step, 1000.0)
            if unscale:
                scaler.unscale_(optimizer)
            else:
                optimizer.clip_grad_norm_(math.inf, grad_scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            scaler.update(1000.0)
    assert_same_training(folded, unscaled)


@pytest.mark.parametrize("clip", [None, "folded", "unscaled"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [False, True])
def test_a_step_with_inf_or_nan_changes_nothing(
    first: bool, value: float, clip: str | None, any_backend: str
) -> None:
    optimizer, twin = make_optimizer(backend=any_backend), make_optimizer()
    scaler = make_scaler()

    def step(seed: int, spoil: bool) -> None:
        set_scaled_grads(optimizer, seed, scaler.get_scale())
        if spoil:
            params_of(optimizer)[2].grad[1] = value
        if clip == "folded":
            optimizer.clip_grad_norm_(1e9, grad_scaler=scaler)
        elif clip == "unscaled":
            scaler.unscale_(optimizer)
            optimizer.clip_grad_norm_(1e9)
        scaler.step(optimizer)
        scaler.update()

    good = [] if first else [0, 1]
    for seed in good:
        step(seed, spoil=False)
    bits = {}
    for param in params_of(optimizer):
        bits[param] = param.detach().clone()
        for name, state in optimizer.state.get(param, {}).items():
            bits[param, name] = state.clone()
    step(7, spoil=True)
    assert scaler.get_scale() == SCALE / 2
    for param in params_of(optimizer):
        assert_same_bits(param, bits[param])
        for name, state in optimizer.state.get(param, {}).items():
            new = torch.full_like(state, name == EXPONENTS)
            assert_same_bits(state, bits.get((param, name), new), name)
    step(2, spoil=False)  # and on it goes
    for seed in [*good, 2]:
        set_scaled_grads(twin, seed, 1.0)
        twin.step()
    assert_same_training(optimizer, twin)


@pytest.mark.parametrize("max_norm", [1e3, 1e-2])
def test_one_pass_unscales_checks_and_clips(max_norm: float, any_backend: str) -> None:
    """The same as unscale_, clip and step one after the other."""
    folded, apart = make_optimizer(backend=any_backend), make_optimizer(backend="reference")
    scalers = make_scaler(), make_scaler()
    for step in range(4):
        for optimizer in (folded, apart):
            set_scaled_grads(optimizer, step, scalers[0].get_scale())
        before = [param.grad.clone() for param in params_of(folded)]
        norm = folded.clip_grad_norm_(max_norm, grad_scaler=scalers[0])
        scalers[0].step(folded)
        scalers[0].update()
        for param, grad in zip(params_of(folded), before, strict=True):
            assert_same_bits(param.grad, grad)
        scalers[1].unscale_(apart)
        expected = apart.clip_grad_norm_(max_norm)
        scalers[1].step(apart)
        scalers[1].update()
        assert_same_bits(norm, expected)
    assert_same_training(folded, apart)


def test_the_scaler_makes_no_pass_of_its_own_after_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, scaler = make_optimizer(), make_scaler()
    set_scaled_grads(optimizer, 0, SCALE)
    optimizer.clip_grad_norm_(1.0, grad_scaler=scaler)
    monkeypatch.setattr(scaler, "_unscale_grads_", None)
    scaler.step(optimizer)
    scaler.update()


def test_clipped_twice_with_a_scaler(any_backend: str) -> None:
    """The gradients still carry the scale, whatever the scaler was told; the last call holds."""
    twice, once = make_optimizer(backend=any_backend), make_optimizer(backend=any_backend)
    for optimizer in (twice, once):
        scaler = make_scaler()
        for step in range(2):
            set_scaled_grads(optimizer, step, SCALE)
            if optimizer is twice:
                first = optimizer.clip_grad_norm_(1e-3, grad_scaler=scaler)
            norm = optimizer.clip_grad_norm_(0.3, grad_scaler=scaler)
            if optimizer is twice:
                assert_same_bits(first, norm)
            scaler.step(optimizer)
            scaler.update()
    assert_same_training(twice, once)


@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_clipped_again_without_the_scaler(norm_type: float) -> None:
    optimizer, scaler = make_optimizer(), make_scaler()
    set_scaled_grads(optimizer, 0, SCALE)
    optimizer.clip_grad_norm_(1.0, grad_scaler=scaler)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="called again without; give it again"):
        optimizer.clip_grad_norm_(1.0, norm_type)
    before.assert_unchanged()


def test_a_scaled_clip_in_inference_mode(any_backend: str) -> None:
    """The scaler adds up what several clips found, outside of that mode."""
    scaler = make_scaler()
    optimizers = [make_optimizer(backend=any_backend, seed=seed) for seed in range(2)]
    twins = [make_optimizer(seed=seed) for seed in range(2)]
    for optimizer, twin in zip(optimizers, twins, strict=True):
        set_scaled_grads(optimizer, 0, SCALE)
        set_scaled_grads(twin, 0, 1.0)
        with torch.inference_mode():
            optimizer.clip_grad_norm_(0.3, grad_scaler=scaler)
        twin.clip_grad_norm_(0.3)
        scaler.step(optimizer)
        twin.step()
        assert_same_training(optimizer, twin)
    scaler.update()


def test_clip_change_error_clip_again(any_backend: str) -> None:
    """The way out that the error names leads on, and nothing of the failed step is left behind."""
    optimizer, twin = make_optimizer(backend=any_backend), make_optimizer()
    scaler = make_scaler()
    for step in range(2):
        set_scaled_grads(optimizer, step, SCALE)
        optimizer.clip_grad_norm_(0.3, grad_scaler=scaler)
        if step:
            set_scaled_grads(optimizer, 7, SCALE)
            with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
                scaler.step(optimizer)
            assert not hasattr(optimizer, "found_inf")
            before = Snapshot(optimizer)
            with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
                scaler.step(optimizer)
            with pytest.raises(RuntimeError, match="called again without; give it again"):
                optimizer.clip_grad_norm_(0.3)
            before.assert_unchanged()
            optimizer.clip_grad_norm_(0.3, grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        set_scaled_grads(twin, 7 if step else step, 1.0)
        twin.clip_grad_norm_(0.3)
        twin.step()
    assert_same_training(optimizer, twin)


def test_a_scaled_clip_that_zero_grad_takes_along() -> None:
    """The scaler still takes gradients for unscaled, and those that come next are not."""
    optimizer, scaler = make_optimizer(), make_scaler()
    set_scaled_grads(optimizer, 0, SCALE)
    optimizer.clip_grad_norm_(0.3, grad_scaler=scaler)
    optimizer.zero_grad()
    set_scaled_grads(optimizer, 1, SCALE)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="still carry the loss scale, and the clip"):
        scaler.step(optimizer)
    before.assert_unchanged()


@pytest.mark.parametrize("folded", [True, False])
def test_a_state_dict_loaded_before_the_scalers_step(folded: bool, any_backend: str) -> None:
    optimizer, twin = make_optimizer(backend=any_backend), make_optimizer()
    scaler = make_scaler()
    for step in range(2):
        set_scaled_grads(optimizer, step, SCALE)
        if folded:
            optimizer.clip_grad_norm_(0.3, grad_scaler=scaler)
        else:
            scaler.unscale_(optimizer)
            optimizer.clip_grad_norm_(0.3)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        scaler.step(optimizer)
        scaler.update()
        set_scaled_grads(twin, step, 1.0)
        twin.clip_grad_norm_(0.3)
        twin.step()
    assert_same_training(optimizer, twin)


@pytest.mark.parametrize("how", ["plain", "unscaled", "folded"])
def test_another_default_dtype(how: str, any_backend: str) -> None:
    """What a kernel reads is float32 whatever new tensors are."""
    optimizer, twin = make_optimizer(backend=any_backend), make_optimizer()
    set_scaled_grads(optimizer, 0, SCALE)
    set_scaled_grads(twin, 0, 1.0)
    torch.set_default_dtype(torch.float64)
    try:
        scaler = make_scaler()
        if how == "unscaled":
            scaler.unscale_(optimizer)
        elif how == "folded":
            optimizer.clip_grad_norm_(math.inf, grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
    finally:
        torch.set_default_dtype(torch.float32)
    twin.step()
    assert_same_training(optimizer, twin)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_the_control_is_float32(default: torch.dtype) -> None:
    one = torch.ones(())
    clip = clip_of(one.double(), 2.0, one * SCALE, None)[1]
    torch.set_default_dtype(default)
    try:
        for given in ((None, one, None), (one, None, None), (None, None, clip), (one, one, clip)):
            assert control(*given).values.dtype == torch.float32
        values = control(None, torch.zeros(()), None).values
    finally:
        torch.set_default_dtype(torch.float32)
    assert values.tolist() == [1, 0]


def test_a_clip_that_was_not_used_says_nothing_after_the_scalers_update() -> None:
    optimizer, twin, scaler = make_optimizer(), make_optimizer(), make_scaler()
    set_scaled_grads(optimizer, 9, SCALE)
    optimizer.clip_grad_norm_(1e-3, grad_scaler=scaler)
    optimizer.zero_grad()
    scaler.update()
    for step, unscale in enumerate((True, False)):
        set_scaled_grads(optimizer, step, SCALE)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        train_step(twin, step)
    assert_same_training(optimizer, twin)


def test_a_step_that_fails_leaves_no_scale_behind(any_backend: str) -> None:
    optimizer, twin = make_optimizer(backend=any_backend), make_optimizer()
    scaler = make_scaler()
    set_scaled_grads(optimizer, 0, SCALE)
    optimizer.clip_grad_norm_(math.inf, grad_scaler=scaler)
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must"):
        scaler.step(optimizer)
    optimizer.param_groups[1]["lr"] = 0.2
    scaler.step(optimizer)
    scaler.update()
    set_scaled_grads(twin, 0, 1.0)
    twin.step()
    assert_same_training(optimizer, twin)


def test_a_skipped_step_lets_go_of_gradients() -> None:
    optimizer = make_optimizer(backend="cpu")
    train_step(optimizer, 0)
    set_random_grads(params_of(optimizer), 1)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    grads = [weakref.ref(param.grad) for param in params_of(optimizer)]
    optimizer.zero_grad()
    assert not any(grad() is not None for grad in grads)


def test_a_disabled_scaler_is_none_at_all() -> None:
    ours, plain = make_optimizer(), make_optimizer()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for optimizer, scaled in ((ours, True), (plain, False)):
        set_random_grads(params_of(optimizer), 0)
        optimizer.clip_grad_norm_(0.1, grad_scaler=scaler if scaled else None)
        scaler.step(optimizer)
    assert_same_training(ours, plain)


def test_clip_after_the_scalers_step() -> None:
    optimizer, scaler = make_optimizer(), make_scaler()
    set_scaled_grads(optimizer, 0, SCALE)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"called after step\(\); call the scaler's update"):
        optimizer.clip_grad_norm_(1.0, grad_scaler=scaler)


def test_clip_before_the_scaler_has_a_scale() -> None:
    optimizer = make_optimizer()
    set_random_grads(params_of(optimizer), 0)
    with pytest.raises(RuntimeError, match="the scaler has no scale yet"):
        optimizer.clip_grad_norm_(1.0, grad_scaler=torch.amp.GradScaler("cpu"))


def test_other_norms_do_not_unscale() -> None:
    optimizer, scaler = make_optimizer(), make_scaler()
    set_scaled_grads(optimizer, 0, SCALE)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"grad_scaler serves norm_type 2, got inf.*unscale_"):
        optimizer.clip_grad_norm_(1.0, math.inf, grad_scaler=scaler)
    before.assert_unchanged()


def test_a_scale_that_the_user_sets(any_backend: str) -> None:
    """What torch's fused optimizers read too: ``grad_scale`` and ``found_inf`` as attributes."""
    optimizer, plain = make_optimizer(backend=any_backend), make_optimizer()
    set_scaled_grads(optimizer, 0, 8.0)
    set_scaled_grads(plain, 0, 1.0)
    optimizer.grad_scale = torch.tensor([8.0])
    optimizer.step()
    plain.step()
    assert_same_training(optimizer, plain)
    optimizer.found_inf = torch.tensor([1.0])
    optimizer.step()
    assert_same_training(optimizer, plain)


@pytest.mark.parametrize(("scale_on", "grads_on"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_no_operation_mixes_the_scales_device_and_the_gradients(
    scale_on: str, grads_on: str
) -> None:
    """By tensors without values, which know of devices that are not there."""
    with FakeTensorMode():
        scale, found_inf = torch.full((), SCALE, device=scale_on), torch.ones((), device=scale_on)
        norm, clip = clip_of(torch.ones((), dtype=torch.float64, device=grads_on), 1.0, scale, None)
        assert {norm.device.type, clip.factor.device.type, clip.found_inf.device.type} == {grads_on}
        for given, expected in (
            ((scale, found_inf, None), scale_on),
            ((None, found_inf, clip), grads_on),
            ((scale, found_inf, clip), grads_on),
        ):
            assert control(*given).values.device.type == expected


def test_nan_without_a_scaler_propagates(any_backend: str) -> None:
    params = random_params((3,), (2,))
    optimizer = AdaMod(params, **OPTIONS, backend=any_backend)
    set_random_grads(params, 0)
    params[0].grad[1] = math.nan
    optimizer.step()
    assert params[0].isnan().tolist() == [False, True, False]
    assert not params[1].isnan().any()


def test_real_training_with_autocast() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = AdaMod(model.parameters(), lr=1e-2, beta3=0.9)
    scaler = torch.amp.GradScaler("cpu")
    inputs = torch.randn(64, 8)
    targets = inputs.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(inputs)
        loss = (outputs.float() - targets).square().mean()
        scaler.scale(loss).backward()
        optimizer.clip_grad_norm_(1.0, grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
