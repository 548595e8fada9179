"""AdaMod as a ``torch.optim.Optimizer``: whatever one does with torch's own must work here too."""

from __future__ import annotations

import ast
import copy
import doctest
import inspect
import itertools
import os
import pickle
import re
import threading
from collections.abc import Callable

import pytest
import torch
from helpers import (
    OPTIONS,
    Snapshot,
    assert_same_bits,
    assert_same_training,
    params_of,
    random_params,
    set_random_grads,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler

import adamod_fused.adamod
from adamod_fused import AdaMod, functional

SHAPES = ((3, 4), (), (7,), (0,), (2, 3, 5))


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def train(optimizer: AdaMod, steps: range) -> None:
    for step in steps:
        set_random_grads(params_of(optimizer), step)
        optimizer.step()


# Param groups

DIFFERING = {
    "lr": 0.5,
    "betas": (0.3, 0.6),
    "beta3": 0.2,
    "eps": 1e-2,
    "weight_decay": 0.7,
    "variant": "paper",
    "maximize": False,
}


@pytest.mark.parametrize("name", DIFFERING)
def test_each_group_has_every_hyperparameter_of_its_own(name: str, backend: str) -> None:
    params, twins = random_params((5,), (6,)), random_params((5,), (6,))
    other = {**OPTIONS, name: DIFFERING[name]}
    together = AdaMod(
        [{"params": params[:1]}, {"params": params[1:], name: DIFFERING[name]}],
        **OPTIONS,
        backend=backend,
    )
    apart = AdaMod(twins[:1], **OPTIONS), AdaMod(twins[1:], **other)
    changed = AdaMod(random_params((5,), (6,)), **OPTIONS)
    for step in range(3):
        train(together, range(step, step + 1))
        set_random_grads(twins, step)
        for optimizer in apart:
            optimizer.step()
    train(changed, range(3))
    for param, twin in zip(params, twins, strict=True):
        assert_same_bits(param, twin)
    assert not torch.equal(params[1], params_of(changed)[1]), f"{name} of the group had no effect"


@pytest.mark.parametrize("name", DIFFERING)
def test_hyperparameters_may_change_between_steps(name: str) -> None:
    optimizers = [
        AdaMod(random_params(*SHAPES), **OPTIONS, backend=b) for b in ("cpu", "reference")
    ]
    for optimizer in optimizers:
        train(optimizer, range(2))
        optimizer.param_groups[0][name] = DIFFERING[name]
        train(optimizer, range(2, 4))
    assert_same_training(*optimizers)
    unchanged = AdaMod(random_params(*SHAPES), **OPTIONS)
    train(unchanged, range(4))
    assert not torch.equal(params_of(optimizers[0])[0], params_of(unchanged)[0])


def test_backend_may_differ_by_group_and_change_between_steps() -> None:
    mixed_params, plain = random_params(*SHAPES), AdaMod(random_params(*SHAPES), **OPTIONS)
    mixed = AdaMod(
        [
            {"params": mixed_params[:2], "backend": "cpu"},
            {"params": mixed_params[2:], "backend": "reference"},
        ],
        **OPTIONS,
    )
    for step in range(4):
        train(mixed, range(step, step + 1))
        train(plain, range(step, step + 1))
        for group in mixed.param_groups:
            group["backend"] = "reference" if group["backend"] == "cpu" else "cpu"
    assert_same_training(mixed, plain)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_group_may_be_empty(place: int, backend: str) -> None:
    params = random_params(*SHAPES)
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    groups.insert(place, {"params": [], "lr": 0.5})
    optimizer = AdaMod(groups, **OPTIONS, backend=backend)
    plain = AdaMod(random_params(*SHAPES), **OPTIONS)
    train(optimizer, range(3))
    train(plain, range(3))
    assert_same_training(optimizer, plain)


def test_named_parameters_keep_their_names() -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    named = AdaMod(model.named_parameters(), **OPTIONS)
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    unnamed = AdaMod(twin.parameters(), **OPTIONS)
    train(named, range(3))
    train(unnamed, range(3))
    assert_same_training(named, unnamed)
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("as_generator", [False, True])
def test_add_param_group_in_mid_training(as_generator: bool, backend: str) -> None:
    params, twins = random_params(*SHAPES), random_params(*SHAPES)
    optimizer = AdaMod(params[:2], **OPTIONS, backend=backend)
    apart = [AdaMod(twins[:2], **OPTIONS), AdaMod(twins[2:], **{**OPTIONS, "lr": 0.5})]
    train(optimizer, range(2))
    train(apart[0], range(2))
    added = (p for p in params[2:]) if as_generator else params[2:]
    optimizer.add_param_group({"params": added, "lr": 0.5})
    for step in range(2, 5):
        set_random_grads(params, step)
        set_random_grads(twins, step)
        for each in (optimizer, *apart):
            each.step()
    assert optimizer.state[params[0]]["step"] == 5
    assert optimizer.state[params[-1]]["step"] == 3
    for param, twin in zip(params, twins, strict=True):
        assert_same_bits(param, twin)


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": -1.0},
        {"backend": "fpga"},
        {"params": [nn.Parameter(torch.ones(2, dtype=torch.cfloat))]},
        {"params": [torch.ones(2), torch.ones(2, dtype=torch.int32)]},
        {"params": "weights"},
        {"params": [nn.Parameter(torch.ones(2)) * 1]},  # no leaf
    ],
    ids=lambda bad: str(next(iter(bad))),
)
def test_a_bad_group_leaves_the_optimizer_unchanged(bad: dict, backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    twin = AdaMod(random_params(*SHAPES), **OPTIONS)
    train(optimizer, range(2))
    before = Snapshot(optimizer)
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group({"params": [torch.ones(3)], **bad})
    before.assert_unchanged()
    train(optimizer, range(2, 3))
    train(twin, range(3))
    assert_same_training(optimizer, twin)


# Closures and hooks


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


# Copies

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}


@pytest.mark.parametrize("copied_after", [0, 2])
@pytest.mark.parametrize("how", COPIES)
def test_copies_continue_identically_and_independently(
    how: str, copied_after: int, backend: str
) -> None:
    def make() -> AdaMod:
        params = random_params(*SHAPES)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.2}]
        return AdaMod(groups, **OPTIONS, backend=backend)

    original, expected = make(), make()
    train(original, range(copied_after))
    twin = COPIES[how](original)
    train(expected, range(copied_after + 3))
    before = Snapshot(original)
    train(twin, range(copied_after, copied_after + 3))
    for param in params_of(original):
        param.grad = None if copied_after == 0 else param.grad
    if copied_after:
        set_random_grads(params_of(original), copied_after - 1)
    before.assert_unchanged()
    train(original, range(copied_after, copied_after + 3))
    assert_same_training(original, expected)
    assert_same_training(twin, expected)
    assert twin.param_groups[1]["lr"] == 0.2
    assert twin.state_dict().keys() == original.state_dict().keys()
    for group, other in zip(twin.param_groups, make().param_groups, strict=True):
        assert group.keys() == other.keys()


# Schedulers: the same as setting what they set by hand


def reduce_on_plateau(optimizer: AdaMod) -> Callable[[], None]:
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return lambda: scheduler.step(1.0)


SCHEDULERS: dict[str, Callable[[AdaMod], Callable[[], None]]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.8**t).step,
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=9).step,
    "CosineAnnealingWarmRestarts": lambda o: (
        lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2).step
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3).step,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.1).step,
    "ReduceLROnPlateau": reduce_on_plateau,
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name: str, tensor_lr: bool, backend: str) -> None:
    lr = torch.tensor(0.0625) if tensor_lr else 0.0625
    scheduled = AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": lr}, backend=backend)
    by_hand = AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": 0.0625}, backend=backend)
    advance = SCHEDULERS[name](scheduled)
    used = set()
    for step in range(8):
        lr, betas = (scheduled.param_groups[0][key] for key in ("lr", "betas"))
        by_hand.param_groups[0].update(lr=float(lr), betas=tuple(float(beta) for beta in betas))
        used.add((float(lr), tuple(float(beta) for beta in betas)))
        train(scheduled, range(step, step + 1))
        train(by_hand, range(step, step + 1))
        advance()
    assert_same_training(scheduled, by_hand)
    assert len(used) >= 2
    if name in ("OneCycleLR", "CyclicLR"):
        assert len({betas for _, betas in used}) >= 2


def test_tensor_hyperparameters_are_read_at_every_step(backend: str) -> None:
    lr, beta3 = torch.tensor(0.5), torch.tensor(0.25)
    options = {**OPTIONS, "lr": lr, "beta3": beta3}
    optimizer = AdaMod(random_params(*SHAPES), **options, backend=backend)
    twin = AdaMod(random_params(*SHAPES), **{**OPTIONS, "lr": 0.5, "beta3": 0.25}, backend=backend)
    train(optimizer, range(2))
    train(twin, range(2))
    lr.fill_(0.125)
    twin.param_groups[0]["lr"] = 0.125
    train(optimizer, range(2, 4))
    train(twin, range(2, 4))
    assert_same_training(optimizer, twin)
    lr.fill_(-1.0)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="lr must be finite and >= 0"):
        optimizer.step()
    before.assert_unchanged()


# Parameters without a gradient, frozen, empty and 0-dim


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool, backend: str) -> None:
    (param,) = random_params((4,))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    train(optimizer, range(1))
    optimizer.zero_grad(set_to_none=set_to_none)
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(before, param) == set_to_none
    assert optimizer.state[param]["step"] == (1 if set_to_none else 2)


def test_parameters_without_a_gradient_are_untouched_and_count_for_themselves(backend: str) -> None:
    params, twins = random_params(*SHAPES), random_params(*SHAPES)
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    apart = [AdaMod([twin], **OPTIONS, backend=backend) for twin in twins]
    counts = [0] * len(params)
    for step in range(6):
        set_random_grads(params, step)
        set_random_grads(twins, step)
        for i, (param, twin) in enumerate(zip(params, twins, strict=True)):
            if (step + i) % 3 == 0 or step < i:
                param.grad = twin.grad = None
            else:
                counts[i] += 1
        versions = [param._version for param in params]
        optimizer.step()
        for param, version, each in zip(params, versions, apart, strict=True):
            each.step()
            assert (param._version == version) == (param.grad is None)
            assert (param in optimizer.state) == (params_of(each)[0] in each.state)
    assert [int(optimizer.state[p]["step"]) for p in params] == counts
    for param, each in zip(params, apart, strict=True):
        (twin,) = params_of(each)
        assert_same_bits(param, twin)
        for name, state in each.state[twin].items():
            assert_same_bits(optimizer.state[param][name], state, name)


def test_nothing_to_step(backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    before = Snapshot(optimizer)
    optimizer.step()
    before.assert_unchanged()


def test_frozen_parameters_are_carried_along(backend: str) -> None:
    trained, frozen = random_params((3,), (3,))
    frozen.requires_grad_(False)
    integers = nn.Parameter(torch.arange(3), requires_grad=False)
    quantized = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    params = [frozen, integers, trained, quantized]
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    versions = [p._version for p in params]
    for step in range(3):
        set_random_grads([trained], step)
        optimizer.step()
    assert [p._version == v for p, v in zip(params, versions, strict=True)] == [
        p is not trained for p in params
    ]
    assert list(optimizer.state) == [trained]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    frozen.requires_grad_(True)
    train_both = [frozen, trained]
    set_random_grads(train_both, 3)
    optimizer.step()
    assert optimizer.state[frozen]["step"] == 1
    assert optimizer.state[trained]["step"] == 4


@pytest.mark.parametrize("shapes", [((5,), (0,)), ((0,), (5,)), ((0,),), ((2, 0, 3), ()), ((),)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_empty_and_0_dim_parameters(shapes: tuple, dtype: torch.dtype) -> None:
    optimizers = [
        AdaMod(random_params(*shapes, dtype=dtype), **OPTIONS, backend=b)
        for b in ("cpu", "reference")
    ]
    for optimizer in optimizers:
        train(optimizer, range(3))
        for param in params_of(optimizer):
            assert optimizer.state[param]["step"] == 3
            assert optimizer.state[param]["exp_avg_lr"].shape == param.shape
    assert_same_training(*optimizers)


# Layouts

SHAPE = (2, 3, 4, 5)


def with_gaps(values: Tensor) -> Tensor:
    """``values`` in every third element of rows with room behind, around it a sentinel."""
    *outer, last = values.shape
    storage = torch.full((*outer, 3 * last + 2), 77.0).to(values.dtype)
    return storage[..., 1 : 3 * last + 1 : 3].copy_(values)


def permuted(values: Tensor) -> Tensor:
    order = [2, 0, 3, 1]
    back = [order.index(d) for d in range(4)]
    return values.permute(order).contiguous().permute(back)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "permuted": permuted,
    "gaps": with_gaps,
    "offset": lambda x: torch.cat([torch.zeros(1, dtype=x.dtype), x.flatten()])[1:].view(x.shape),
}
GRAD_LAYOUTS = LAYOUTS | {
    "expanded": lambda x: x[:1, :, :1].expand(x.shape),
    "expanded from one": lambda x: x[0, 0, 0, 0].expand(x.shape),
    "half expanded": lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize("grad_layout", GRAD_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layouts_give_what_contiguous_tensors_give(
    layout: str, grad_layout: str, dtype: torch.dtype
) -> None:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).to(dtype)
    param, twin = nn.Parameter(LAYOUTS[layout](values)), nn.Parameter(values.clone())
    plain, neighbour = random_params((9,), (9,))
    optimizer = AdaMod([neighbour, param], **OPTIONS, backend="cpu")
    expected = AdaMod([plain, twin], **OPTIONS, backend="reference")
    strides, address = param.stride(), param.data_ptr()
    for step in range(4):
        set_random_grads([plain, twin], step)
        neighbour.grad = plain.grad.clone()
        param.grad = GRAD_LAYOUTS[grad_layout](twin.grad)
        twin.grad = param.grad.contiguous()
        optimizer.step()
        expected.step()
    assert_same_bits(param, twin)
    for name, state in expected.state[twin].items():
        assert_same_bits(optimizer.state[param][name], state, name)
    assert (param.stride(), param.data_ptr()) == (strides, address)
    if layout == "gaps":
        storage = torch.empty(0, dtype=dtype).set_(param.untyped_storage())
        assert int((storage == 77.0).sum()) == storage.numel() - param.numel()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_gradient_with_the_negative_bit(shape: tuple[int, ...]) -> None:
    results = []
    for backend in ("cpu", "reference"):
        (param,) = random_params(shape)
        optimizer = AdaMod([param], **OPTIONS, backend=backend)
        for step in range(4):
            optimizer.zero_grad()
            if step % 2:
                param.grad = torch.full(shape, 0.5)
            else:
                z = torch.complex(torch.zeros(shape), param).conj()
                (z * z).real.sum().backward()
                assert param.grad.is_neg()
            optimizer.step()
        results.append(optimizer)
    assert_same_training(*results)


# What a step leaves alone, and what it tells autograd


@pytest.mark.parametrize("layout", GRAD_LAYOUTS)
def test_gradients_are_untouched(layout: str, backend: str) -> None:
    (param,) = random_params(SHAPE)
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    values = torch.randn(SHAPE)
    for _ in range(2):
        grad = GRAD_LAYOUTS[layout](values)
        before = grad.untyped_storage().tolist()
        facts = grad.data_ptr(), grad.stride(), grad._version
        param.grad = grad
        optimizer.step()
        assert param.grad is grad
        assert (grad.data_ptr(), grad.stride(), grad._version) == facts
        assert grad.untyped_storage().tolist() == before


@pytest.mark.parametrize("layout", ["contiguous", "gaps"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1)])
def test_autograd_learns_that_parameters_changed(layout: str, shape: tuple, backend: str) -> None:
    param = nn.Parameter(LAYOUTS[layout](torch.randn(shape)))
    optimizer = AdaMod([param], **OPTIONS, backend=backend)
    for _ in range(2):  # a first step makes a plan, a later one finds it
        loss = param.pow(2).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# State

STATE_DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", STATE_DTYPES, ids=str)
def test_state_is_as_documented(dtype: torch.dtype, default: torch.dtype, backend: str) -> None:
    torch.set_default_dtype(default)
    try:
        optimizer = AdaMod(random_params(*SHAPES, dtype=dtype), **OPTIONS, backend=backend)
        train(optimizer, range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    for param in params_of(optimizer):
        state = optimizer.state[param]
        assert list(state) == ["step", "exp_avg", "exp_avg_sq", "exp_avg_lr"]
        step = state.pop("step")
        assert (step.dtype, step.shape, step.device.type) == (torch.float32, (), "cpu")
        assert step == 2
        for name, tensor in state.items():
            assert (tensor.dtype, tensor.shape) == (STATE_DTYPES[dtype], param.shape), name
            assert not tensor.requires_grad


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_default_device_does_not_move_the_state(default: str, backend: str) -> None:
    optimizer = AdaMod(random_params((3,)), **OPTIONS, backend=backend)
    with torch.device(default):
        train(optimizer, range(2))
    (state,) = optimizer.state.values()
    assert all(tensor.device.type == "cpu" for tensor in state.values())


def test_looking_at_the_state_before_the_first_step(backend: str) -> None:
    """``optimizer.state`` is a defaultdict: a look leaves an empty entry behind."""
    looked_at = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    plain = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    for param in params_of(looked_at):
        assert looked_at.state[param] == {}
    looked_at.step()
    looked_at.load_state_dict(looked_at.state_dict())
    train(looked_at, range(2))
    train(plain, range(2))
    assert_same_training(looked_at, plain)


@pytest.mark.parametrize("entry", [3, {"count": 3}], ids=["number", "dict"])
def test_users_may_keep_entries_of_their_own_in_the_state(entry: object, backend: str) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    plain = AdaMod(random_params(*SHAPES), **OPTIONS, backend=backend)
    optimizer.state["mine"] = entry
    train(optimizer, range(2))
    optimizer.state["later"] = entry
    train(optimizer, range(2, 4))
    train(plain, range(4))
    assert_same_training(optimizer, plain)
    assert optimizer.state["mine"] is entry


def test_states_of_a_parameter_may_have_entries_of_the_users(backend: str) -> None:
    optimizer = AdaMod(random_params((3,)), **OPTIONS, backend=backend)
    train(optimizer, range(1))
    (state,) = optimizer.state.values()
    state["mine"] = 3
    train(optimizer, range(1, 3))
    assert state["mine"] == 3
    assert state["step"] == 3


def test_lazy_modules_may_be_given_before_they_know_their_shapes(backend: str) -> None:
    model = nn.LazyLinear(3)
    optimizer = AdaMod(model.parameters(), **OPTIONS, backend=backend)
    optimizer.step()
    model(torch.ones(2, 4)).sum().backward()
    start = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(start, model.weight)


# Threads and processes


def test_optimizers_in_several_threads() -> None:
    optimizers = [AdaMod(random_params((100_000,)), **OPTIONS, backend="cpu") for _ in range(4)]
    threads = [threading.Thread(target=train, args=(o, range(8))) for o in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in itertools.pairwise(optimizers):
        assert_same_training(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_step_in_a_forked_process() -> None:
    """A child inherits no threads: a pool that counts on them would wait for ever."""
    optimizer = AdaMod(random_params((200_000,)), **OPTIONS, backend="cpu")
    train(optimizer, range(1))
    child = os.fork()
    if child == 0:
        optimizer.step()
        os._exit(0 if optimizer.state[params_of(optimizer)[0]]["step"] == 2 else 1)
    timer = threading.Timer(30, os.kill, (child, 9))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert status == 0


# Documentation


@pytest.mark.parametrize("documented", [AdaMod, functional.adamod], ids=lambda d: d.__name__)
def test_documented_defaults_are_those_of_the_signature(documented: Callable) -> None:
    text = inspect.getdoc(documented)
    arguments = re.search(r"\nArgs:\n(.*?)\n\n", text, re.DOTALL).group(1)
    entries = dict(re.findall(r"^    (\w+): (.*?)(?=\n    \w|\Z)", arguments, re.DOTALL | re.M))
    parameters = inspect.signature(documented).parameters
    assert list(entries) == list(parameters)
    for name, parameter in parameters.items():
        stated = re.search(r"Default: (.+?)\.(?=\s|$)", entries[name])
        if parameter.default is parameter.empty:
            assert stated is None, name
        else:
            assert ast.literal_eval(stated.group(1)) == parameter.default, name


def test_the_example_in_the_documentation_runs() -> None:
    failed, attempted = doctest.testmod(adamod_fused.adamod)
    assert attempted >= 5
    assert failed == 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_groups_parameters_may_stand_in_a_tuple(backend: str) -> None:
    params = random_params((3,), (2, 2))
    optimizer = AdaMod(params, **OPTIONS, backend=backend)
    optimizer.param_groups[0]["params"] = tuple(params)
    for step in range(2):
        set_random_grads(params, step)
        optimizer.step()
    assert all(optimizer.state[param]["step"] == 2 for param in params)
