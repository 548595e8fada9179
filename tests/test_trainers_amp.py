"""Mixed precision and clipping in Lightning and Accelerate: AdaMod where plain AdamW works."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from adamod_fused import AdaMod

pytestmark = pytest.mark.integration

SCALE, CLIP, STEPS, OVERFLOWS_AT = 2.0**10, 0.05, 5, 2
OPTIMIZERS = {
    "AdaMod": lambda params: AdaMod(params, lr=1e-2, beta3=0.9),
    "fused AdaMod": lambda params: AdaMod(params, lr=1e-2, beta3=0.9, fused=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),  # what the trainers are made for
}
on_each = pytest.mark.parametrize("name", OPTIMIZERS)


def needs(package: str) -> pytest.MarkDecorator:
    is_missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(is_missing, reason=f"no {package} here: pip install it")


def make_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def make_inputs() -> torch.Tensor:
    """A batch for each step, in rows; one overflows."""
    inputs = torch.randn(STEPS, 4, generator=torch.Generator().manual_seed(1))
    inputs[OVERFLOWS_AT] = math.inf
    return inputs


def make_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=SCALE)


def clip(params: Any, algorithm: str) -> None:
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(params, CLIP)
    else:
        nn.utils.clip_grad_value_(params, CLIP)


def trained_plainly(name: str, precision: str, algorithm: str) -> nn.Linear:
    layer = make_layer()
    optimizer = OPTIMIZERS[name](layer.parameters())
    is_scaled = precision == "16-mixed"
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=is_scaled)
    for inputs in make_inputs() if is_scaled else make_inputs().nan_to_num(posinf=1.0):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.half if is_scaled else torch.bfloat16):
            loss = layer(inputs[None]).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip(layer.parameters(), algorithm)
        scaler.step(optimizer)
        scaler.update()
    return layer


@needs("lightning")
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@on_each
def test_lightning_clips(name: str, precision: str, algorithm: str) -> None:
    """The bits of the loop that torch's documentation has."""
    import lightning
    from lightning.pytorch.plugins import MixedPrecision

    is_scaled = precision == "16-mixed"

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make_layer()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return self.layer(batch[0]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return OPTIMIZERS[name](self.parameters())

    module, scaler = Module(), make_scaler() if is_scaled else None
    inputs = make_inputs() if is_scaled else make_inputs().nan_to_num(posinf=1.0)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        plugins=[MixedPrecision(precision, "cpu", scaler)],
        gradient_clip_val=CLIP,
        gradient_clip_algorithm=algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(inputs)))
    if scaler is not None:
        assert scaler.get_scale() == SCALE / 2
    expected = trained_plainly(name, precision, algorithm)
    for param, twin in zip(module.layer.parameters(), expected.parameters(), strict=True):
        assert torch.equal(param, twin)
        assert param.isfinite().all()


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """Of mixed precision on the CPU, which Accelerate itself allows on a GPU alone."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    made = Accelerator(cpu=True)
    made.scaler, made.native_amp = make_scaler(), True
    made.state._mixed_precision = "fp16"
    yield made
    AcceleratorState._reset_state(True)


@needs("accelerate")
@pytest.mark.parametrize("clips", [False, True])
@on_each
def test_accelerate_does_not_schedule_a_skipped_step(
    name: str, clips: bool, accelerator: Any
) -> None:
    layer = make_layer()
    optimizer = OPTIMIZERS[name](layer.parameters())
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    layer, optimizer, scheduler = accelerator.prepare(layer, optimizer, scheduler)
    skipped, rates = [], []
    for inputs in make_inputs():
        optimizer.zero_grad()
        accelerator.backward(layer(inputs[None]).sum())
        if clips:
            accelerator.clip_grad_norm_(layer.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        skipped.append(optimizer.step_was_skipped)
        rates.append(scheduler.get_last_lr()[0])
    assert skipped == [step == OVERFLOWS_AT for step in range(STEPS)]
    assert rates == [1e-2 * 0.5**done for done in (1, 2, 2, 3, 4)]
    assert accelerator.scaler.get_scale() == SCALE / 2
    assert all(param.isfinite().all() for param in layer.parameters())
