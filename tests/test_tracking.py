"""Rows of bound_stats() as TensorBoard, W&B and two trainers get them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from bound_rows import FakeAdaMod
from torch import nn
from wandb_file import history

from adamod_fused import AdaMod
from adamod_fused.tracking import read, rows
from adamod_fused.tracking.run_log import FILE

STEPS, EVERY = 5, 2  # tracked: 1, 3, 5


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {missing} here: pip install them")


def train(writer) -> dict[int, list[dict]]:
    """Logs after each of the steps; returns the rows by step."""
    optimizer, logged = FakeAdaMod(every=EVERY), {}
    for step in range(1, STEPS + 1):
        optimizer.step()
        writer.log(optimizer)
        if step % EVERY:
            logged[step] = optimizer.bound_stats(by="group")
    return logged


@pytest.mark.integration
@needs("tensorboard")
def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from adamod_fused.tracking.tensorboard import BoundStatsWriter

    with SummaryWriter(tmp_path) as writer:
        logged = train(BoundStatsWriter(writer))
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    for column in rows.NUMBERS:
        found = {e.step: e.value for e in events.Scalars(f"adamod_{column}/group_0")}
        expected = {step: given[0][column] for step, given in logged.items()}
        assert found == pytest.approx(expected, rel=1e-6), column
    for column in rows.HISTOGRAMS:
        histograms = events.Histograms(f"adamod_{column}_log2/group_0")
        assert [h.step for h in histograms] == list(logged)
        for histogram in histograms:
            counts = logged[histogram.step][0][column]
            value = histogram.histogram_value
            assert value.num == sum(counts)
            filled = {(limit, n) for limit, n in zip(value.bucket_limit, value.bucket, strict=True)}
            expected = set(zip(rows.LOG2_EDGES[1:], counts, strict=True))
            assert {pair for pair in filled if pair[1]} == {pair for pair in expected if pair[1]}
            middles = [edge - 0.5 for edge in rows.LOG2_EDGES[1:]]
            mean = sum(n * m for n, m in zip(counts, middles, strict=True)) / sum(counts)
            assert value.sum / value.num == pytest.approx(mean)


@pytest.mark.parametrize("given", [None, 70])
def test_tensorboard_writes_at_the_step_of_now_or_at_the_one_given(given):
    """Not at that of parameters which came later and count from 1."""
    from adamod_fused.tracking.tensorboard import BoundStatsWriter

    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer, summary_writer = AdaMod([early, late], track_bound=4), Mock()
    writer = BoundStatsWriter(summary_writer)
    for param in (early, early, early, early, late):
        optimizer.zero_grad()
        param.grad = torch.ones(2)
        optimizer.step()
    writer.log(optimizer, given)
    assert {call.args[2] for call in summary_writer.add_scalar.mock_calls} == {given or 4}


@pytest.mark.integration
@needs("wandb")
def test_wandb_offline_holds_what_was_logged(tmp_path, monkeypatch):
    import wandb

    from adamod_fused.tracking.wandb import BoundStatsWriter

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    with wandb.init(project="bound", dir=tmp_path) as run:
        logged = train(BoundStatsWriter(run))
        folder = Path(run.dir).parent
    wandb.teardown()  # its process writes the file, and not before finish() returns
    logs = list(history(folder))
    assert [entry["adamod_step"] for entry in logs] == list(logged)
    for entry in logs:
        (row,) = logged[entry["adamod_step"]]
        assert {c: entry[f"adamod_{c}/group_0"] for c in rows.NUMBERS} == pytest.approx(
            {c: row[c] for c in rows.NUMBERS}
        )
        for column in rows.HISTOGRAMS:
            histogram = entry[f"adamod_{column}_log2/group_0"]
            assert histogram["_type"] == "histogram"
            assert histogram["values"] == row[column]
            assert histogram["bins"] == rows.LOG2_EDGES


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.layer(x).squeeze(-1), labels)}


@pytest.mark.integration
@needs("transformers", "accelerate")
def test_huggingface_trainer_logs_and_keeps_the_bound(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import Trainer, TrainingArguments

    from adamod_fused.tracking.huggingface import BoundStatsCallback

    with pytest.raises(ValueError, match="log=None and run_dir=None log nothing"):
        BoundStatsCallback()
    model = Model()
    optimizer = AdaMod(model.named_parameters(), track_bound=EVERY)
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        logging_steps=2,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"x": torch.randn(2), "labels": torch.tensor(1.0)} for _ in range(8)]
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
    trainer.add_callback(BoundStatsCallback(trainer.log, tmp_path / "run"))
    trainer.train()

    tag = "adamod_bounded/group_0"
    shown = {e["step"]: e[tag] for e in trainer.state.log_history if tag in e}
    assert list(shown) == [1, 3, 5]
    assert shown[5] == optimizer.bound_stats(by="group")[0]["bounded"]
    entries = read(tmp_path / "run")
    assert [e["step"] for e in entries if "rows" in e] == [1, 3, 5]
    losses = {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}
    assert losses.keys() == {2, 4}
    assert {e["step"]: e["loss"] for e in entries if "loss" in e} == losses
    assert entries[-1]["rows"] == optimizer.bound_stats()
    assert [row["name"] for row in entries[-1]["rows"]] == ["layer.weight", "layer.bias"]


@pytest.mark.integration
@needs("transformers")
def test_huggingface_rows_and_losses_lie_on_the_steps_of_the_trainer(tmp_path):
    """A step that a loss scale's overflow skipped is one of the Trainer's, and not of AdaMod's."""
    from transformers import TrainerControl, TrainerState

    from adamod_fused.tracking.huggingface import BoundStatsCallback

    param = nn.Parameter(torch.ones(3))
    optimizer, state = AdaMod([param], track_bound=2), TrainerState()
    callback, control = BoundStatsCallback(run_dir=tmp_path), TrainerControl()
    for step in range(1, 9):
        optimizer.found_inf = torch.tensor(float(step in (2, 4)))
        param.grad = torch.ones(3)
        optimizer.step()
        state.global_step = step
        callback.on_step_end(None, state, control, optimizer=optimizer)
        callback.on_log(None, state, control, optimizer=optimizer, logs={"loss": step})
    entries = read(tmp_path)
    assert {e["step"]: e["loss"] for e in entries} == {step: step for step in range(1, 9)}
    tracked = {e["step"]: e["rows"][0]["step"] for e in entries if "rows" in e}
    assert tracked == {1: 1, 3: 2, 5: 3, 7: 5}


@pytest.mark.integration
@needs("lightning")
def test_lightning_writes_whole_losses_of_whole_steps(tmp_path):
    """Not the part that it hands on of each of the batches that a step accumulates."""
    import lightning
    from torch.utils.data import DataLoader

    from adamod_fused.tracking.lightning import BoundStatsCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, number):
            return 0 * self.layer(batch).sum() + number

        def configure_optimizers(self):
            return AdaMod(self.named_parameters(), track_bound=2)

    how = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    how |= {"enable_model_summary": False, "accumulate_grad_batches": 3, "log_every_n_steps": 1}
    how["default_root_dir"] = tmp_path
    data, checkpoint = DataLoader(torch.ones(12, 2)), None
    for epochs in (1, 2):  # the second goes on from the first
        callback = BoundStatsCallback(tmp_path / "run")
        trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback], **how)
        trainer.fit(Module(), data, ckpt_path=checkpoint)
        checkpoint = trainer.checkpoint_callback.best_model_path
    lines = (tmp_path / "run" / FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    entries = read(tmp_path / "run")
    assert [e["loss"] for e in entries] == pytest.approx([2, 5, 8, 11] * 2)
    assert [e["step"] for e in entries if "rows" in e] == [1, 3, 5, 7]


@pytest.mark.integration
@needs("lightning")
def test_lightning_trainer_logs_and_keeps_the_bound(tmp_path):
    import lightning
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader

    from adamod_fused.tracking.lightning import BoundStatsCallback

    seen = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch, _):
            loss = self.model(batch, torch.ones(2))["loss"]
            seen.append(loss.item())
            return loss

        def configure_optimizers(self):
            return AdaMod(self.named_parameters(), track_bound=EVERY)

    logger = CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=4,
        callbacks=[BoundStatsCallback(tmp_path / "run", per_tensor=True)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(torch.randn(10, 2), batch_size=2))

    tags = [name for name in logger.experiment.metrics_keys if name.startswith("adamod_")]
    assert len(tags) == 2 * len(rows.NUMBERS)
    text = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    place = text[0].split(",").index("adamod_update_norm/model.layer.bias")
    found = [line.split(",")[place] for line in text[1:]]
    entries = read(tmp_path / "run")
    expected = [e["rows"][1]["update_norm"] for e in entries if "rows" in e]
    assert [float(value) for value in found if value] == pytest.approx(expected)
    assert entries[-1]["rows"] == trainer.optimizers[0].bound_stats()
    assert {e["step"]: e["loss"] for e in entries} == pytest.approx(
        {step: seen[step - 1] for step in (1, 3, 4, 5)}
    )
    assert [e["step"] for e in entries if "rows" in e] == [1, 3, 5]
