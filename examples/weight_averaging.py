"""torch.optim.swa_utils: the average of the weights of AdaMod's last epochs, at a constant lr.

SWALR changes lr within a few steps, and AdaMod's bound follows in about 1 / (1 - beta3): the
averaging starts when both have settled.
"""

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

from adamod_fused import AdaMod

EPOCHS, ANNEAL, AVERAGE_FROM, SWA_LR = 24, 4, 12, 2e-2
torch.manual_seed(0)
x = torch.randn(128, 4)
y = x.sum(1, keepdim=True) + 0.5 * torch.randn(128, 1)
loader = DataLoader(TensorDataset(x, y), batch_size=16)
model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
optimizer = AdaMod(model.parameters(), lr=5e-3, beta3=0.9, weight_decay=0.01, fused=True)
averaged = AveragedModel(model)
scheduler = SWALR(optimizer, swa_lr=SWA_LR, anneal_epochs=ANNEAL)


def loss_of(network):
    network.eval()
    with torch.no_grad():
        return nn.functional.mse_loss(network(x), y).item()


before, kept = loss_of(model), []
for epoch in range(EPOCHS):
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    scheduler.step()
    if epoch >= AVERAGE_FROM:
        averaged.update_parameters(model)
        kept.append([param.detach().double() for param in model.parameters()])
update_bn(loader, averaged)

assert optimizer.param_groups[0]["lr"] == SWA_LR
for mean, *values in zip(averaged.module.parameters(), *kept, strict=True):
    torch.testing.assert_close(mean.detach(), torch.stack(values).mean(0).float())
    assert not torch.equal(values[0], values[-1]), "the weights stood still"
last, mean = loss_of(model), loss_of(averaged)
assert mean < 0.5 * before, (before, mean)
print(f"weight averaging: loss {before:.3f} -> last {last:.3f}, averaged {mean:.3f}")
