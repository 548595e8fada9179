"""As TorchTitan holds optimizers: one for each part of the model, configured by plain keywords.

One state dict by parameter names holds all of them. It loads into states of any format.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as by_name

from adamod_fused import AdaMod

CONFIG = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True, "foreach": False}
FLAT = by_name.StateDictOptions(flatten_optimizer_state_dict=True)
torch.manual_seed(0)
X = torch.randn(64, 8)
Y = X.sum(1, keepdim=True)


def build(seed, **formats):
    torch.manual_seed(seed)
    stages = [8, 16, 32], [32, 1]  # pipeline stages; names are unique over the whole model
    parts = [nn.ModuleDict({f"{a}-{b}": nn.Linear(a, b) for a, b in pairwise(s)}) for s in stages]
    return parts, [AdaMod(part.parameters(), beta3=0.9, **CONFIG, **formats) for part in parts]


def train(parts, optimizers, steps):
    layers = [layer for part in parts for layer in part.values()]
    for _ in range(steps):
        hidden = X
        for layer in layers:
            hidden = layer(hidden.tanh())
        loss = nn.functional.mse_loss(hidden, Y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()


whole, first, resumed = build(seed=1), build(seed=1), build(seed=2)
start, end = train(*whole, 1), train(*whole, 59)
train(*first, 30)
weights, saved = {}, {}
for part, optimizer in zip(*first, strict=True):
    weights |= part.state_dict()
    saved |= by_name.get_optimizer_state_dict(part, optimizer, options=FLAT)
assert {"state.8-16.weight.exp_avg_lr", "param_groups.32-1.bias.beta3"} <= saved.keys()
for run in (build(seed=2, state_format="8bit", min_coded_numel=0), resumed):
    for part, optimizer in zip(*run, strict=True):
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
        by_name.set_optimizer_state_dict(part, optimizer, saved, options=FLAT)
    assert train(*run, 30) < 0.2 * start

assert end < 0.2 * start, (start, end)
for part, expected in zip(resumed[0], whole[0], strict=True):
    assert all(map(torch.equal, part.parameters(), expected.parameters())), "resumed differs"
print(f"TorchTitan style: resumed bit for bit; loss {start:.3f} -> {end:.3f}")
