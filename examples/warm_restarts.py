"""SGDR: torch's CosineAnnealingWarmRestarts and decoupled weight decay, which follows lr.

A weight whose gradient is always zero shows the decay alone: each step takes lr * weight_decay of
it off with that step's lr, so it too falls by cosine arcs.
"""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from adamod_fused import AdaMod

LR, DECAY, PERIOD, RESTARTS = 2e-2, 0.1, 20, 3
torch.manual_seed(0)
x = torch.randn(64, 4)
y = x.sum(1, keepdim=True)
model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
unused = nn.Parameter(torch.ones(3))
# The bound follows lr with a delay of about 1 / (1 - beta3) steps: well within one period here.
optimizer = AdaMod([*model.parameters(), unused], lr=LR, beta3=0.8, weight_decay=DECAY, fused=True)
scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=PERIOD)

losses, decayed = [], torch.ones(3)
for step in range(PERIOD * RESTARTS):
    lr = LR * (1 + math.cos(math.pi * (step % PERIOD) / PERIOD)) / 2
    assert math.isclose(optimizer.param_groups[0]["lr"], lr, rel_tol=1e-12)
    decayed -= lr * DECAY * decayed
    loss = nn.functional.mse_loss(model(x), y) + 0 * unused.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())

ends = losses[PERIOD - 1 :: PERIOD]  # the loss at each restart, where lr is smallest
assert ends == sorted(ends, reverse=True), ends
assert losses[-1] < 0.2 * losses[0], (losses[0], losses[-1])
assert torch.equal(unused.detach(), decayed), (unused, decayed)
print(f"warm restarts: decay follows lr; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
