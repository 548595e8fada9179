"""Scripts that pull memory away, or exchange what it belongs to, between an optimizer's steps."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import torch
from helpers import STATES, random_params, train_step
from torch import Tensor, nn

from adamod_fused import AdaMod

SHAPES = ((3, 4), (6,), (), (6,), (2, 3, 4, 5))


def random_like(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def groups_of(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.2, "betas": (0.5, 0.7)}]


# Each gets an optimizer that has stepped twice, and its parameters.
Script = Callable[[AdaMod, list[nn.Parameter]], None]
SCRIPTS: dict[str, Script] = {}


def script(function: Script) -> Script:
    SCRIPTS[function.__name__.replace("_", " ")] = function
    return function


@script
def swap_data(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    for i, param in enumerate(params):
        param.data = random_like(param, i)


@script
def swap_data_between_parameters(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[1].data, params[3].data = params[3].data, params[1].data


@script
def swap_data_for_other_strides(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].data = params[0].data.T.contiguous().T
    params[1].data = torch.stack([params[1].data, params[1].data], -1)[:, 0]
    train_step(optimizer, 20)
    params[0].data = torch.stack([params[0].data, params[0].data], -1)[..., 1]
    train_step(optimizer, 21)
    params[0].data = params[0].data.contiguous()
    params[1].data = params[1].data.contiguous()


@script
def swap_data_for_another_shape(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """With the state removed, as one who grows an embedding does."""
    for param in (params[0], params[3]):
        del optimizer.state[param]
        param.data = torch.linspace(-1, 1, 200).view(20, 10)
        param.grad = None


@script
def swap_data_for_another_dtype(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """States of float32 serve halves too."""
    params[0].data = params[0].data.bfloat16()
    params[4].data = params[4].data.half()
    train_step(optimizer, 20)
    params[0].data = params[0].data.float()


@script
def set_the_storage(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    with torch.no_grad():
        params[4].set_(random_like(params[4], 5))
        optimizer.state[params[0]]["exp_avg"].set_(random_like(params[0], 6))


@script
def resize_in_place(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The same tensor objects, with memory elsewhere."""
    param, state = params[1], optimizer.state[params[1]]
    for tensor in (param.data, state["exp_avg"], state["exp_avg_sq"], state["exp_avg_lr"]):
        tensor.resize_(100_000).fill_(0.25)
        tensor.resize_(6)
    train_step(optimizer, 20)
    with torch.no_grad():
        param.data = torch.full((50,), 0.5)
        for name in STATES:
            state[name].resize_(50).fill_(0.125)


@script
def replace_state_tensors(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    for i, param in enumerate(params):
        for name in STATES:
            optimizer.state[param][name] = random_like(param, i).abs()


@script
def replace_state_tensors_by_some_in_another_layout(
    optimizer: AdaMod, params: list[nn.Parameter]
) -> None:
    state = optimizer.state[params[0]]
    state["exp_avg"] = state["exp_avg"].T.contiguous().T
    state["exp_avg_lr"] = torch.stack([state["exp_avg_lr"]] * 2, -1)[..., 0]
    train_step(optimizer, 20)
    last = optimizer.state[params[4]]
    last["exp_avg_sq"] = last["exp_avg_sq"].contiguous(memory_format=torch.channels_last)


@script
def replace_state_data(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    for param in params:
        for name in STATES:
            tensor = optimizer.state[param][name]
            tensor.data = tensor.data.clone() + 0.5


@script
def swap_states_between_parameters(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    state = optimizer.state
    state[params[1]], state[params[3]] = state[params[3]], state[params[1]]


@script
def replace_a_state_entry(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]] = copy.deepcopy(optimizer.state[params[3]])


@script
def reorder_the_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[0]] = optimizer.state.pop(params[0])


@script
def exchange_the_places_of_two_entries(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """Both of one shape: only the keys tell which entry is whose."""
    order = [params[i] for i in (0, 3, 2, 1, 4)]
    entries = dict(optimizer.state)
    optimizer.state.clear()
    optimizer.state.update({param: entries[param] for param in order})


@script
def replace_the_whole_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state = {param: copy.deepcopy(optimizer.state[param]) for param in params}


@script
def clear_the_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state.clear()


@script
def clear_some_of_the_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[1]]
    optimizer.state[params[3]] = {}


@script
def empty_an_entry_in_place(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]].clear()


@script
def replace_the_step(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.state[params[0]]["step"] = torch.tensor(7.0)
    optimizer.state[params[1]]["step"].fill_(0.0)
    optimizer.state[params[3]]["step"] = torch.tensor([1.0, 30.0])[1]


@script
def reload(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    saved = copy.deepcopy(optimizer.state_dict())
    train_step(optimizer, 20)
    train_step(optimizer, 21)
    optimizer.load_state_dict(saved)
    del saved
    gc.collect()


@script
def grow_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"] += random_params((5,), (7, 2), seed=4)


@script
def add_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.add_param_group({"params": random_params((5,), (7, 2), seed=4), "lr": 0.4})


@script
def remove_a_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """Its state stays behind, and its memory goes."""
    removed = optimizer.param_groups[0]["params"].pop(0)
    removed.data = torch.empty(0)
    gc.collect()


@script
def remove_a_parameter_and_its_state(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.state[optimizer.param_groups[1]["params"].pop()]
    params.pop()
    gc.collect()


@script
def remove_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    del optimizer.param_groups[0]


@script
def empty_a_group(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["params"].clear()


@script
def swap_the_order_of_parameters(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    listed = optimizer.param_groups[1]["params"]
    listed[0], listed[1] = listed[1], listed[0]


@script
def swap_parameters_of_two_groups(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The same shape in both, so that nothing but the hyperparameters tells them apart."""
    first, second = (group["params"] for group in optimizer.param_groups)
    first[1], second[1] = second[1], first[1]


@script
def move_the_border_between_groups(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The parameters stay in order: only where one group ends has changed."""
    first, second = (group["params"] for group in optimizer.param_groups)
    first.append(second.pop(0))


@script
def swap_groups(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    optimizer.param_groups.reverse()


@script
def replace_a_parameter(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """The new one has the shape and, as likely as not, the address of the old one."""
    (new,) = random_params((6,), seed=8)
    optimizer.state[new] = optimizer.state.pop(params[1])
    optimizer.param_groups[0]["params"][1] = new
    del params[1]
    gc.collect()


@script
def swap_tensors(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    """What ``Module.to`` may do: the objects stay, all else is exchanged."""
    torch.utils.swap_tensors(params[1], random_params((6,), seed=8)[0])
    state = optimizer.state[params[3]]
    torch.utils.swap_tensors(state["exp_avg"], torch.full((6,), 0.5))


@script
def make_a_parameter_require_no_gradient(optimizer: AdaMod, params: list[nn.Parameter]) -> None:
    params[0].requires_grad_(False)
    params[0].grad = None
    optimizer.step()
    params[0].requires_grad_(True)
