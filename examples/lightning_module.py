"""AdaMod in a LightningModule, with clipping and a scheduler: the same bits as a plain loop."""

import lightning
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from adamod_fused import AdaMod

EPOCHS, CLIP = 5, 0.5
torch.manual_seed(0)
X = torch.randn(64, 4)
LOADER = DataLoader(TensorDataset(X, X.sum(1, keepdim=True)), batch_size=8)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.mse_loss(self.layers(x), y)

    def configure_optimizers(self):
        optimizer = AdaMod(self.parameters(), lr=2e-2, beta3=0.9, weight_decay=0.01, fused=True)
        return [optimizer], [StepLR(optimizer, step_size=2, gamma=0.5)]  # stepped every epoch

    # Lightning's own clipping works too; this one spares a pass over the gradients.
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        optimizer.clip_grad_norm_(gradient_clip_val)


module = Module()
trainer = lightning.Trainer(
    max_epochs=EPOCHS, accelerator="cpu", gradient_clip_val=CLIP, gradient_clip_algorithm="norm",
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, LOADER)

plain = Module()
[optimizer], [scheduler] = plain.configure_optimizers()
losses = []
for _ in range(EPOCHS):
    for batch in LOADER:
        loss = plain.training_step(batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm_(CLIP)
        optimizer.step()
        losses.append(loss.item())
    scheduler.step()

assert sum(losses[-8:]) < 0.5 * sum(losses[:8]), losses
same = map(torch.equal, module.parameters(), plain.parameters())
assert all(same), "Lightning's run differs from the plain loop"
print(f"Lightning: the bits of the plain loop; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
