"""Layouts: results do not depend on them, and a step leaves alone what is not its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import OPTIONS, assert_same_bits, assert_same_training, random_params, set_random_grads
from torch import Tensor, nn

from adamod_fused import AdaMod

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
    "negated": lambda x: torch._neg_view(-x),
}


@pytest.mark.parametrize("grad_layout", GRAD_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layouts_give_what_contiguous_tensors_give(
    layout: str, grad_layout: str, dtype: torch.dtype, reader: None
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


@pytest.mark.parametrize("weight_format", ["plain", "split"])
def test_autograd_learns_that_states_changed(
    weight_format: str, state_format: str, backend: str, reader: None
) -> None:
    (param,) = random_params((130,), dtype=torch.bfloat16)
    optimizer = AdaMod([param], **OPTIONS, backend=backend, weight_format=weight_format)
    set_random_grads([param], 0)
    optimizer.step()
    tensors = {"param": param, **optimizer.state[param]}
    versions = {name: tensor._version for name, tensor in tensors.items()}
    optimizer.step()
    unchanged = [name for name, tensor in tensors.items() if tensor._version == versions[name]]
    assert not unchanged
