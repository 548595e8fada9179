"""timm's param groups and LR schedulers: every group has its own lr, in ratios that stay.

`param_groups_layer_decay` gives the layers near the input less lr, and norms and biases no decay;
the scheduler is built without warm-up, which AdaMod's bound is.
"""

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

from adamod_fused import AdaMod

LR, UPDATES = 3e-3, 60
torch.manual_seed(0)
model = VisionTransformer(
    img_size=8, patch_size=4, in_chans=1, num_classes=2, embed_dim=16, depth=2, num_heads=2
)
images = torch.randn(32, 1, 8, 8)
labels = (images.mean((1, 2, 3)) > 0).long()

groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
optimizer = AdaMod(groups, lr=LR, beta3=0.9, fused=True)
scheduler, _ = create_scheduler_v2(
    optimizer, sched="cosine", num_epochs=UPDATES, warmup_epochs=0, min_lr=0.0,
    step_on_epochs=False, updates_per_epoch=1,
)  # fmt: skip
start = [param.detach().clone() for param in model.parameters()]

losses = []
for update in range(UPDATES):
    cosine = LR * (1 + math.cos(math.pi * update / UPDATES)) / 2
    for group in optimizer.param_groups:
        assert math.isclose(group["lr"], cosine * group["lr_scale"], rel_tol=1e-9), group["lr"]
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step_update(update + 1)
    losses.append(loss.item())

moved = [torch.dist(a, b).item() for a, b in zip(start, model.parameters(), strict=True)]
assert min(moved) > 0, moved
assert losses[-1] < 0.5 * losses[0], (losses[0], losses[-1])
scales = sorted({group["lr_scale"] for group in optimizer.param_groups})
print(f"timm: lr scales {scales}; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
