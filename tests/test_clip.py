"""clip_grad_norm_: torch's value, gradients unchanged, the coefficient applied inside the step."""

from __future__ import annotations

import copy
import math
import pickle
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from helpers import (
    OPTIONS,
    SHAPES,
    Snapshot,
    assert_same_bits,
    assert_same_training,
    make_optimizer,
    params_of,
    random_params,
    set_random_grads,
    train_step,
)
from torch import Tensor

from adamod_fused import AdaMod

pytestmark = pytest.mark.usefixtures("state_format")

# At the usual scale of gradients all three are clipped, the first is not at 1e3.
MAX_NORMS = [1e3, 1.0, 1e-3, 0.0]


@pytest.fixture(params=["cpu", "reference", "cuda"])
def any_backend(request: pytest.FixtureRequest) -> str:
    """Also the CUDA engine, emulated: on tensors of the CPU."""
    if request.param == "cuda":
        request.getfixturevalue("emulated_as_cuda")
    return request.param


def grads_of(optimizer: AdaMod) -> list[Tensor]:
    return [param.grad for param in params_of(optimizer)]


def scale_grads(params: Sequence[Tensor], factor: float) -> None:
    for param in params:
        param.grad = param.grad * factor


@pytest.mark.parametrize("max_norm", MAX_NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norm_and_step(dtype: torch.dtype, max_norm: float, any_backend: str) -> None:
    """The norm is torch's; the step that of gradients multiplied by the coefficient in float32."""
    clipped = make_optimizer(dtype, backend=any_backend)
    twins = [torch.nn.Parameter(p.detach().float()) for p in params_of(clipped)]
    groups = [{**g, "params": []} for g in clipped.param_groups]
    for group, size in zip(groups, (2, 3), strict=True):
        group["params"] = [twins.pop(0) for _ in range(size)]
    expected = AdaMod(groups, backend="reference")
    for step in range(3):
        set_random_grads(params_of(clipped), step)
        before = [grad.clone() for grad in grads_of(clipped)]
        norm = clipped.clip_grad_norm_(max_norm)
        torch_norm = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in before]))
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(torch_norm.item(), rel=1e-6)
        for grad, old in zip(grads_of(clipped), before, strict=True):
            assert_same_bits(grad, old)
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for param, twin, grad in zip(params_of(clipped), params_of(expected), before, strict=True):
            twin.data.copy_(param.detach())  # narrower parameters are rounded at each step
            twin.grad = grad.float() * coefficient
        clipped.step()
        expected.step()
        for param, twin in zip(params_of(clipped), params_of(expected), strict=True):
            assert_same_bits(param, twin.to(dtype))
            for name, state in expected.state[twin].items():
                assert_same_bits(clipped.state[param][name], state, name)


def test_the_value_of_torchs_own_function() -> None:
    optimizer = make_optimizer()
    set_random_grads(params_of(optimizer), 0)
    norm = optimizer.clip_grad_norm_(0.5)
    expected = torch.nn.utils.clip_grad_norm_(params_of(optimizer), 0.5)
    assert norm.shape == expected.shape
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.usefixtures("emulated_as_cuda")
def test_all_backends_find_the_same_bits() -> None:
    norms = []
    for backend in ("cpu", "reference", "cuda"):
        params = random_params((70000,), (3, 5), (0,), (16385,), (1024,))
        optimizer = AdaMod(params, **OPTIONS, backend=backend)
        set_random_grads(params, 1)
        norms.append(optimizer.clip_grad_norm_(1.0).item())
    assert norms[0] == norms[1] == norms[2]


def test_the_next_step_only(any_backend: str) -> None:
    clipped, plain = (make_optimizer(backend=any_backend) for _ in range(2))
    for step in range(3):
        set_random_grads(params_of(clipped), step)
        set_random_grads(params_of(plain), step)
        if step == 1:
            norm = clipped.clip_grad_norm_(1e-2)
            scale_grads(params_of(plain), (1e-2 / (norm + 1e-6)).item())
        clipped.step()
        plain.step()
    assert_same_training(clipped, plain)


def test_called_twice_the_last_call_holds(any_backend: str) -> None:
    twice, once = (make_optimizer(backend=any_backend) for _ in range(2))
    for optimizer in (twice, once):
        set_random_grads(params_of(optimizer), 0)
    first = twice.clip_grad_norm_(1e-3)
    assert_same_bits(twice.clip_grad_norm_(0.3), first)
    once.clip_grad_norm_(0.3)
    twice.step()
    once.step()
    assert_same_training(twice, once)


@pytest.mark.parametrize("change", ["written", "replaced", "dropped", "added"])
def test_gradients_that_change_after_the_clip(change: str, any_backend: str) -> None:
    optimizer = make_optimizer(backend=any_backend)
    params = params_of(optimizer)
    set_random_grads(params, 0)
    optimizer.step()
    set_random_grads(params, 1)
    if change == "added":
        late, params[0].grad = params[0].grad, None
    optimizer.clip_grad_norm_(0.1)
    if change == "written":
        params[3 if params[3].numel() else 0].grad.mul_(2)
    elif change == "replaced":  # by one that may lie where the old one lay
        values = params[2].grad.tolist()
        params[2].grad = None
        params[2].grad = torch.tensor(values)
    elif change == "dropped":
        params[2].grad = None
    else:
        params[0].grad = late
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"gradients changed after clip_grad_norm_.*zero_grad"):
        optimizer.step()
    before.assert_unchanged()
    optimizer.clip_grad_norm_(0.1)  # as the message says
    optimizer.step()


def test_gradients_that_change_where_the_next_plan_has_no_table() -> None:
    """The clip was one of a kernel's gradients, the step is the reference's."""
    optimizer = make_optimizer()
    set_random_grads(params_of(optimizer), 0)
    optimizer.clip_grad_norm_(0.1)
    for group in optimizer.param_groups:
        group["backend"] = "reference"
    for param in params_of(optimizer):
        param.grad = None
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
        optimizer.step()
    before.assert_unchanged()


def pop_a_state(optimizer: AdaMod) -> None:
    optimizer.state.pop(params_of(optimizer)[0])


def convert_states(optimizer: AdaMod) -> None:
    for group in optimizer.param_groups:
        group.update(state_format="8bit", min_coded_numel=0)


def turn_params_around(optimizer: AdaMod) -> None:
    for group in optimizer.param_groups:
        group["params"].reverse()


def step_by_reference(optimizer: AdaMod) -> None:
    optimizer.param_groups[0]["backend"] = "reference"


@pytest.mark.parametrize(
    "change", [pop_a_state, convert_states, turn_params_around, step_by_reference]
)
def test_a_plan_made_anew_after_the_clip(
    change: Callable[[AdaMod], None], any_backend: str
) -> None:
    """It steps the same gradients, and raises for others before it makes or converts states."""
    optimizer, twin = (make_optimizer(backend=any_backend) for _ in range(2))
    for each in (optimizer, twin):
        train_step(each, 0)
        set_random_grads(params_of(each), 1)
    change(twin)
    optimizer.clip_grad_norm_(1e-2)
    twin.clip_grad_norm_(1e-2)
    change(optimizer)
    params = params_of(optimizer)
    before = Snapshot(optimizer)
    clipped, params[2].grad = params[2].grad, torch.ones_like(params[2])
    with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
        optimizer.step()
    before.assert_unchanged()
    params[2].grad = clipped
    optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)


def test_a_step_that_fails_keeps_the_clip(any_backend: str) -> None:
    optimizer, twin = (make_optimizer(backend=any_backend) for _ in range(2))
    for each in (optimizer, twin):
        set_random_grads(params_of(each), 0)
        each.clip_grad_norm_(0.1)
    params = params_of(optimizer)
    clipped, params[2].grad = params[2].grad, torch.ones_like(params[2])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
            optimizer.step()
    params[2].grad = clipped
    optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)


@pytest.mark.parametrize("between", ["load", "add", "copy"])
def test_what_makes_the_plan_anew_keeps_the_clip(between: str, any_backend: str) -> None:
    optimizer, twin = (make_optimizer(backend=any_backend) for _ in range(2))
    for each in (optimizer, twin):
        train_step(each, 0)
        set_random_grads(params_of(each), 1)
        each.clip_grad_norm_(1e-2)
    if between == "load":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif between == "copy":
        optimizer = copy.copy(optimizer)
    else:
        for each in (optimizer, twin):
            each.add_param_group({"params": random_params((3,))})
    optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)
    train_step(optimizer, 2)  # the clip was of one step
    train_step(twin, 2)
    assert_same_training(optimizer, twin)


def test_a_param_group_with_gradients_added_after_the_clip(any_backend: str) -> None:
    optimizer = make_optimizer(backend=any_backend)
    set_random_grads(params_of(optimizer), 0)
    optimizer.clip_grad_norm_(1e-2)
    late = random_params((3,))
    set_random_grads(late, 1)
    optimizer.add_param_group({"params": late})
    with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
        optimizer.step()


def test_copies_without_gradients_have_no_clip() -> None:
    optimizer = make_optimizer()
    train_step(optimizer, 0)
    set_random_grads(params_of(optimizer), 1)
    optimizer.clip_grad_norm_(1e-2)
    for each in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin = make_optimizer()
        train_step(twin, 0)
        for both in (each, twin):
            train_step(both, 2)
        assert_same_training(each, twin)


def test_copies_of_gradients_are_other_gradients() -> None:
    """A tensor that is no nn.Parameter is copied with its gradient; the clip is not of that one."""
    (param,) = random_params((5,))
    optimizer = AdaMod([param.detach().requires_grad_()], **OPTIONS)
    set_random_grads(params_of(optimizer), 0)
    optimizer.clip_grad_norm_(1e-2)
    both = copy.deepcopy(optimizer)
    with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
        both.step()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite(value: float, any_backend: str) -> None:
    optimizer = make_optimizer(backend=any_backend)
    twin = make_optimizer(backend="reference")
    for each in (optimizer, twin):
        train_step(each, 1)
        set_random_grads(params_of(each), 0)
        each.param_groups[1]["params"][2].grad[0, 0, 0] = value
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"norm of the gradients is (nan|inf).*check_finite"):
        optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True)
    before.assert_unchanged()
    norm = optimizer.clip_grad_norm_(1.0)
    assert not norm.isfinite()
    torch.nn.utils.clip_grad_norm_(params_of(twin), 1.0)  # what torch makes of it
    optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)


@pytest.mark.parametrize("norm_type", [math.inf, 1.0, 3.0])
def test_other_norms_are_torchs_own(norm_type: float) -> None:
    ours, plain = (AdaMod(random_params((3, 4), (5,)), **OPTIONS) for _ in range(2))
    for optimizer in (ours, plain):
        set_random_grads(params_of(optimizer), 0)
    norm = ours.clip_grad_norm_(0.1, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(params_of(plain), 0.1, norm_type)
    assert_same_bits(norm, expected)
    ours.step()
    plain.step()
    assert_same_training(ours, plain)


@pytest.mark.parametrize(
    ("max_norm", "error", "message"),
    [
        (-1.0, ValueError, r"max_norm must be finite and >= 0, got -1\.0"),
        (-math.inf, ValueError, "max_norm must be >= 0, got -inf"),
        (math.nan, ValueError, "max_norm must .* got nan"),
        ("1", TypeError, "max_norm must be a number, got '1'"),
        (None, TypeError, "max_norm must be a number, got None"),
    ],
)
def test_bad_bounds(max_norm: object, error: type[Exception], message: str) -> None:
    optimizer = make_optimizer()
    set_random_grads(params_of(optimizer), 0)
    before = Snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.clip_grad_norm_(max_norm)
    before.assert_unchanged()


def test_an_infinite_bound_clips_nothing(any_backend: str) -> None:
    clipped, plain = (make_optimizer(backend=any_backend) for _ in range(2))
    for optimizer in (clipped, plain):
        set_random_grads(params_of(optimizer), 0)
    clipped.clip_grad_norm_(math.inf)
    clipped.step()
    plain.step()
    assert_same_training(clipped, plain)


def test_new_gradients_where_old_ones_lay(any_backend: str) -> None:
    """Allocators use addresses again: a step that was left out leaves no coefficient behind."""
    (param,) = random_params((1000, 100))
    optimizer = AdaMod([param], **OPTIONS, backend=any_backend)
    memory = np.ones((1000, 100), dtype=np.float32)
    for step in range(10):
        param.grad = torch.from_numpy(memory)  # another tensor each time
        if step % 2 == 0:
            optimizer.clip_grad_norm_(1.0)
            continue
        with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
            optimizer.step()


def test_zero_grad_takes_an_unused_clip_along(any_backend: str) -> None:
    skipped, plain = (make_optimizer(backend=any_backend) for _ in range(2))
    set_random_grads(params_of(skipped), 0)
    skipped.clip_grad_norm_(1e-3)
    skipped.zero_grad()
    for optimizer in (skipped, plain):
        train_step(optimizer, 1)
    assert_same_training(skipped, plain)


def test_another_norm_in_place_of_the_first(any_backend: str) -> None:
    params = random_params((3, 4), (5,))
    optimizer = AdaMod(params, **OPTIONS, backend=any_backend)
    set_random_grads(params, 0)
    optimizer.clip_grad_norm_(1.0)
    optimizer.clip_grad_norm_(1.0, math.inf)
    optimizer.step()


def test_no_gradients_at_all(any_backend: str) -> None:
    optimizer = make_optimizer(backend=any_backend)
    assert optimizer.clip_grad_norm_(1.0).item() == 0.0
    optimizer.step()
    assert not optimizer.state


def test_gradients_in_other_layouts(any_backend: str) -> None:
    params = random_params((4, 6), (5,))
    optimizer = AdaMod(params, **OPTIONS, backend=any_backend)
    twins = random_params((4, 6), (5,))
    plain = AdaMod(twins, **OPTIONS, backend="reference")
    set_random_grads(twins, 0)
    params[0].grad = twins[0].grad.t().contiguous().t()
    params[1].grad = twins[1].grad[:1].expand(5)
    twins[1].grad = params[1].grad.contiguous()
    assert optimizer.clip_grad_norm_(0.1).item() == pytest.approx(
        plain.clip_grad_norm_(0.1).item(), rel=1e-6
    )
    optimizer.step()
    plain.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make_in_mode", "clip_in_mode", "norm_type"),
    [(True, True, 2.0), (True, False, 2.0), (False, True, 2.0), (True, True, 1.0)],
)
def test_inference_mode(
    make_in_mode: bool, clip_in_mode: bool, norm_type: float, any_backend: str
) -> None:
    """Gradients that were made in inference mode have no version."""
    optimizer, twin = (make_optimizer(backend=any_backend) for _ in range(2))
    for step in range(2):
        set_random_grads(params_of(twin), step)
        expected = twin.clip_grad_norm_(0.1, norm_type)
        with torch.inference_mode(make_in_mode):
            set_random_grads(params_of(optimizer), step)
        with torch.inference_mode(clip_in_mode):
            assert_same_bits(optimizer.clip_grad_norm_(0.1, norm_type), expected)
        optimizer.step()
        twin.step()
    assert_same_training(optimizer, twin)


def test_parameters_made_in_inference_mode(any_backend: str) -> None:
    optimizer, twin = (make_optimizer(backend=any_backend) for _ in range(2))
    set_random_grads(params_of(twin), 0)
    expected = twin.clip_grad_norm_(0.1)
    with torch.inference_mode():
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(param.clone()) for param in group["params"]]
        set_random_grads(params_of(optimizer), 0)
        assert_same_bits(optimizer.clip_grad_norm_(0.1), expected)
        optimizer.step()
    twin.step()
    assert_same_training(optimizer, twin)


def test_other_gradients_made_in_inference_mode(any_backend: str) -> None:
    optimizer = make_optimizer(backend=any_backend)
    with torch.inference_mode():
        set_random_grads(params_of(optimizer), 0)
        optimizer.clip_grad_norm_(0.1)
        set_random_grads(params_of(optimizer), 1)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
        optimizer.step()
    before.assert_unchanged()


def test_gradients_are_not_held_after_the_clip() -> None:
    optimizer = make_optimizer()
    set_random_grads(params_of(optimizer), 0)
    optimizer.clip_grad_norm_(1.0)
    grads = [weakref.ref(grad) for grad in grads_of(optimizer)]
    optimizer.zero_grad()
    assert not any(grad() is not None for grad in grads)


def test_a_closure_that_makes_new_gradients_is_told() -> None:
    optimizer = make_optimizer()
    params = params_of(optimizer)
    set_random_grads(params, 0)
    optimizer.clip_grad_norm_(1.0)
    with pytest.raises(RuntimeError, match="gradients changed after clip_grad_norm_"):
        optimizer.step(lambda: set_random_grads(params, 1))


def test_check_finite_of_other_kinds_of_tensors() -> None:
    lazy = torch.nn.LazyLinear(3)
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    optimizer = AdaMod([*lazy.parameters(), *embedding.parameters()])
    optimizer.check_finite()
    embedding.weight.grad = embedding.weight.grad * math.inf
    with pytest.raises(FloatingPointError, match="the gradient of parameter 2 of group 0"):
        optimizer.check_finite()


@pytest.mark.parametrize("which", ["gradient", "parameter", "exp_avg_sq"])
def test_check_finite_names_the_first(which: str) -> None:
    named = [(f"layer{i}", param) for i, param in enumerate(random_params(*SHAPES))]
    optimizer = AdaMod(named, **OPTIONS)
    params = params_of(optimizer)
    optimizer.check_finite()
    set_random_grads(params, 0)
    optimizer.step()
    optimizer.check_finite()
    values = optimizer.state_dict()
    for i in (2, 4):
        with torch.no_grad():
            {
                "gradient": params[i].grad,
                "parameter": params[i],
                "exp_avg_sq": values["state"][i]["exp_avg_sq"],
            }[which].view(-1)[0] = math.nan
    optimizer.load_state_dict(values)
    who = r"parameter 2 of group 0 \('layer2'\)"
    message = {
        "gradient": f"^the gradient of {who} holds inf or NaN; so do 1 more$",
        "parameter": f"^{who} holds inf or NaN; so do 1 more$",
        "exp_avg_sq": f"^exp_avg_sq of {who} holds inf or NaN; so do 1 more$",
    }[which]
    with pytest.raises(FloatingPointError, match=message):
        optimizer.check_finite()
