"""AdaMod under Accelerate: accumulated gradients, clipping, a scheduler, and a run resumed.

Interrupted, saved with `save_state` and loaded into fresh objects, it ends with the same bits as
the run that was not interrupted.
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from adamod_fused import AdaMod

EPOCHS = 6
torch.manual_seed(0)
X = torch.randn(64, 4)
Y = X.prod(1, keepdim=True)


def build(seed):
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = AdaMod(model.parameters(), lr=2e-2, beta3=0.9, weight_decay=0.01, fused=True)
    scheduler = CosineAnnealingLR(optimizer, T_max=4 * EPOCHS)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    return accelerator, *accelerator.prepare(model, optimizer, loader, scheduler)


def train(epochs, accelerator, model, optimizer, loader, scheduler):
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return nn.functional.mse_loss(model(X), Y).item()


whole, first, resumed = build(seed=1), build(seed=1), build(seed=2)
before, after = train(0, *whole), train(EPOCHS, *whole)
train(EPOCHS // 2, *first)
with tempfile.TemporaryDirectory() as folder:
    first[0].save_state(folder)
    resumed[0].load_state(folder)
train(EPOCHS - EPOCHS // 2, *resumed)

assert after < 0.8 * before, (before, after)
assert whole[2].param_groups[0]["lr"] < 1e-8, "the scheduler did not reach its end"
same = map(torch.equal, resumed[1].parameters(), whole[1].parameters())
assert all(same), "the resumed run differs from the uninterrupted one"
print(f"Accelerate: resumed bit for bit; loss {before:.3f} -> {after:.3f}")
