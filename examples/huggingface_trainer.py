"""AdaMod in Hugging Face's Trainer, by class and ready made; both give the bits of a plain loop.

No warm-up is asked for: AdaMod's bound is one.
"""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # this example needs no network

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from adamod_fused import AdaMod

OPTIONS, BATCH, CLIP = {"lr": 1e-2, "beta3": 0.9, "fused": True}, 8, 1.0
torch.manual_seed(0)
X = torch.randn(160, 4)
DATA = [{"x": x, "labels": x.sum()} for x in X]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.layers(x).squeeze(-1), labels)}


def train(model, **how):
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=3, per_device_train_batch_size=BATCH, max_grad_norm=CLIP,
            lr_scheduler_type="constant", train_sampling_strategy="sequential",
            use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=DATA, **how).train()


by_class, ready_made, plain = Model(), Model(), Model()
train(by_class, optimizer_cls_and_kwargs=(AdaMod, OPTIONS))
train(ready_made, optimizers=(AdaMod(ready_made.parameters(), **OPTIONS), None))

optimizer, losses = AdaMod(plain.parameters(), **OPTIONS), []
for batch in X.split(BATCH) * 3:
    loss = plain(batch, batch.sum(1))["loss"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
    optimizer.step()
    losses.append(loss.item())

assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
for model in (by_class, ready_made):
    assert all(map(torch.equal, model.parameters(), plain.parameters())), "the Trainer differs"
print(f"Trainer, both ways: the bits of the plain loop; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
