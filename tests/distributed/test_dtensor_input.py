"""What a step takes of DTensors and what it refuses, with everything left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS, assert_same_bits
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from training import kernels_alone

from adamod_fused import AdaMod, functional

ROWS = 6


def cut(
    device: str, placement: Placement, values: Tensor | None = None, mesh_name: str = "ranks"
) -> DTensor:
    """ROWS x 4 values, the same wherever no others are given."""
    mesh = init_device_mesh(device, (distributed.get_world_size(),), mesh_dim_names=(mesh_name,))
    if values is None:
        values = torch.arange(4.0 * ROWS).view(ROWS, 4)
    whole = DTensor.from_local(values.to(device), mesh, [Replicate()])
    if placement.is_partial():
        return DTensor.from_local(values.to(device), mesh, [placement])
    return whole.redistribute(mesh, [placement])


def stepped(device: str) -> tuple[nn.Parameter, AdaMod]:
    """A parameter and its optimizer after a step, with a good gradient in place."""
    param = nn.Parameter(cut(device, Shard(0)))
    optimizer = AdaMod([param], **OPTIONS)
    param.grad = cut(device, Shard(0))
    optimizer.step()
    return param, optimizer


def contents(optimizer: AdaMod) -> list[tuple[Tensor, Tensor]]:
    """An optimizer's tensors and copies of what they hold here."""
    entries = [tensor for states in optimizer.state.values() for tensor in states.values()]
    tensors = [*optimizer.state, *entries]
    return [(tensor, getattr(tensor, "_local_tensor", tensor).clone()) for tensor in tensors]


def assert_unchanged(optimizer: AdaMod, before: list[tuple[Tensor, Tensor]]) -> None:
    for (tensor, values), (then, values_then) in zip(contents(optimizer), before, strict=True):
        assert tensor is then
        assert_same_bits(values, values_then)


def refuse_partial_parameters(device: str) -> None:
    param = nn.Parameter(cut(device, Partial()))
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* redistribute it to Shard or"):
        AdaMod([param])


def refuse_gradients(device: str) -> None:
    param, optimizer = stepped(device)
    uneven = torch.ones(1 if distributed.get_rank() == 0 else ROWS - 1, 4, device=device)
    bad: list[tuple[Tensor, str]] = [
        (torch.ones(ROWS, 4, device=device), "a plain tensor .*give both the same type"),
        (cut(device, Shard(0), mesh_name="others"), "put both on one mesh"),
        (
            DTensor.from_local(
                uneven, param.device_mesh, [Shard(0)], shape=(ROWS, 4), stride=(4, 1)
            ),
            "cut both at the same places",
        ),
    ]
    for grad, message in bad:
        param.grad = None  # torch's own setter compares shapes alone
        param.grad = grad
        before = contents(optimizer)
        with pytest.raises((TypeError, ValueError), match=f"gradient of parameter 0.*{message}"):
            optimizer.step()
        assert_unchanged(optimizer, before)
    param.grad = cut(device, Shard(0))
    with kernels_alone():
        optimizer.step()

    plain = nn.Parameter(torch.ones(ROWS, 4, device=device))
    plain.grad = torch.ones_like(plain)
    plain.grad = cut(device, Replicate())
    with pytest.raises(TypeError, match=r"is a DTensor .*the parameter a plain tensor"):
        AdaMod([plain]).step()


def refuse_states(device: str) -> None:
    param, optimizer = stepped(device)
    good = optimizer.state[param]["exp_avg"]
    for bad, message in (
        (good.full_tensor(), "exp_avg of parameter 0.* is a plain tensor"),
        (good.redistribute(placements=[Replicate()]), "which distributes states as their"),
    ):
        optimizer.state[param]["exp_avg"] = bad
        before = contents(optimizer)
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert_unchanged(optimizer, before)
    optimizer.state[param]["exp_avg"] = good
    with kernels_alone():
        optimizer.step()

    # As modules do that convert their parameters: the same object, cut in another way.
    torch.utils.swap_tensors(
        param, nn.Parameter(param.detach().redistribute(placements=[Shard(1)]))
    )
    param.grad = cut(device, Shard(1))
    with pytest.raises(ValueError, match="which distributes states as their"):
        optimizer.step()


def count_versions(device: str) -> None:
    param, optimizer = stepped(device)
    before = param._version, param.to_local()._version, param._local_tensor._version
    optimizer.step()
    after = param._version, param.to_local()._version, param._local_tensor._version
    assert all(b < a for b, a in zip(before, after, strict=True))


def step_in_any_layout(device: str) -> None:
    """Local tensors with gaps are stepped in place, through copies without gaps."""
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    memory = torch.zeros(3, 8, device=device)
    values = torch.randn(3, 4, device=device)
    param = nn.Parameter(DTensor.from_local(memory[:, ::2].copy_(values), mesh, [Shard(0)]))
    twin = nn.Parameter(values.clone())
    optimizer, expected = AdaMod([param], **OPTIONS), AdaMod([twin], **OPTIONS)
    with kernels_alone():
        for _ in range(3):
            twin.grad = torch.randn(3, 4, device=device)
            param.grad = DTensor.from_local(twin.grad, mesh, [Shard(0)])
            optimizer.step()
            expected.step()
    assert_same_bits(memory[:, ::2], twin)
    assert not memory[:, 1::2].any()
    for name, state in expected.state[twin].items():
        actual = optimizer.state[param][name]
        assert_same_bits(actual if name == "step" else actual.to_local(), state, name)


def step_as_a_function(device: str) -> None:
    param, grad = cut(device, Shard(0)), cut(device, Shard(0))
    states = [torch.zeros_like(param) for _ in range(3)]
    step = torch.zeros(())
    twin = nn.Parameter(cut(device, Replicate()).to_local().clone())
    twin.grad = cut(device, Replicate()).to_local()
    expected = AdaMod([twin], **OPTIONS)
    expected.step()
    options = dict(OPTIONS)
    options["beta1"], options["beta2"] = options.pop("betas")
    with kernels_alone():
        functional.adamod([param], [grad], *([state] for state in states), [step], **options)
    assert_same_bits(param.full_tensor(), twin)
    for name, state in zip(("exp_avg", "exp_avg_sq", "exp_avg_lr"), states, strict=True):
        assert_same_bits(state.full_tensor(), expected.state[twin][name], name)


def mix_backends(device: str) -> None:
    """The reference steps DTensors too, and goes on from the kernels' states."""
    param, optimizer = stepped(device)
    twin, expected = stepped(device)
    optimizer.param_groups[0]["backend"] = "reference"
    optimizer.step()
    with kernels_alone():
        expected.step()
    assert_same_bits(param.full_tensor(), twin.full_tensor())


@pytest.mark.parametrize(
    "function",
    [
        refuse_partial_parameters,
        refuse_gradients,
        refuse_states,
        count_versions,
        step_in_any_layout,
        step_as_a_function,
        mix_backends,
    ],
)
def test_on_two_ranks(run: Callable[..., None], function: Callable[[str], None]) -> None:
    run(function, 2)
