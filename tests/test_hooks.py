"""What runs around a step: closures, hooks, backward, the gradient scaler."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_bits,
    assert_same_training,
    random_params,
    train,
)
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from adamod_fused import AdaMod, step_hooks


def test_closure(backend: str) -> None:
    (param,), (twin,) = random_params((4,)), random_params((4,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    by_hand = AdaMod([twin], **OPTIONS, backend=backend)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = param.pow(2).sum()
        loss.backward()
        return loss

    for _ in range(3):
        by_hand.zero_grad()
        expected = twin.pow(2).sum()
        expected.backward()
        by_hand.step()
        with torch.no_grad():
            loss = optimizer.step(closure)
        assert torch.equal(loss, expected)
    assert_same_training(optimizer, by_hand)
    assert optimizer.step() is None


def test_a_closure_that_raises_changes_nothing(backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    train(optimizer, range(2))
    before = Snapshot(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    before.assert_unchanged()


def test_step_hooks_run_in_order_and_see_the_parameters_before_and_after(backend: str) -> None:
    (param,) = random_params((4,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    seen: list[tuple[str, Tensor]] = []

    def pre(_: AdaMod, args: tuple, kwargs: dict) -> None:
        param.grad = torch.ones(4)  # a hook may supply the gradient
        seen.append(("pre", param.detach().clone()))

    def post(_: AdaMod, args: tuple, kwargs: dict) -> None:
        seen.append(("post", param.detach().clone()))

    handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]
    start = param.detach().clone()
    optimizer.step()
    assert [when for when, _ in seen] == ["pre", "post"]
    assert torch.equal(seen[0][1], start)
    assert torch.equal(seen[1][1], param)
    assert not torch.equal(start, param)
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 2


def test_step_inside_backward() -> None:
    """An optimizer for each parameter, stepped by a hook as its gradient is ready."""
    params, twins = random_params((3,), (4,)), random_params((3,), (4,))
    optimizers = {param: AdaMod([param], **OPTIONS) for param in params}

    def step_and_free(param: Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in params:
        param.register_post_accumulate_grad_hook(step_and_free)
    whole = AdaMod(twins, **OPTIONS)
    for _ in range(3):
        (params[0].prod() * params[1].sum()).backward()
        whole.zero_grad()
        (twins[0].prod() * twins[1].sum()).backward()
        whole.step()
    for param, twin in zip(params, twins, strict=True):
        assert param.grad is None
        assert_same_bits(param, twin)


def test_grad_scaler() -> None:
    (param,), (twin,) = random_params((5,)), random_params((5,))
    scaled, plain = AdaMod([param], **OPTIONS), AdaMod([twin], **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(param.pow(2).sum()).backward()
    scaler.step(scaled)
    scaler.update()
    twin.pow(2).sum().backward()
    plain.step()
    assert_same_training(scaled, plain)
    scaled.zero_grad()
    scaler.scale((param * torch.inf).sum()).backward()
    before = Snapshot(scaled)
    scaler.step(scaled)
    before.assert_unchanged()


def count_calls(optimizer: AdaMod) -> list[str]:
    """Registers hooks of all four kinds; the list grows as they are called."""
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    return called


class Overriding(AdaMod):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("optimizer_class", [AdaMod, Overriding])
def test_hooks_run_once_also_around_a_step_that_calls_ours(optimizer_class: type[AdaMod]) -> None:
    AdaMod(random_params((4,)))  # the first of its class: torch looks at the class's step then
    (param,) = random_params((4,))
    optimizer = optimizer_class([param])
    called = count_calls(optimizer)
    param.grad = torch.ones(4)
    optimizer.step()
    assert called == ["pre", "post"]
    assert optimizer.state[param]["step"] == 1


def test_hooks_on_all_optimizers() -> None:
    (param,) = random_params((4,))
    optimizer = AdaMod([param])
    param.grad = torch.ones(4)
    called = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: called.append("pre")),
        register_optimizer_step_post_hook(lambda *_: called.append("post")),
    ]
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert called == ["pre", "post"]
    optimizer.step()
    assert called == ["pre", "post"]


@pytest.mark.parametrize("with_hook", [False, True])
def test_a_step_has_a_range_of_its_name_in_a_profile(with_hook: bool) -> None:
    (param,) = random_params((4,))
    optimizer = AdaMod([param])
    param.grad = torch.ones(4)
    optimizer.step()
    if with_hook:
        optimizer.register_step_pre_hook(lambda *_: None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert [e.count for e in profile.key_averages() if e.key == "Optimizer.step#AdaMod.step"] == [1]


def test_torchs_wrapper_is_not_paid_for_where_nothing_is_hooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is where it would be noticed: no range of the slow kind in a step without hooks."""
    (param,) = random_params((4,))
    optimizer = AdaMod([param])
    param.grad = torch.ones(4)
    monkeypatch.setattr(torch.autograd.profiler, "record_function", None)
    optimizer.step()
    optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(TypeError):
        optimizer.step()


def test_a_torch_that_hides_its_names_wraps_the_step_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(self: AdaMod) -> None:
        """Does nothing."""

    assert step_hooks.with_step_hooks(step) is not step
    monkeypatch.setattr(step_hooks, "_is_known", False)
    assert step_hooks.with_step_hooks(step) is step
