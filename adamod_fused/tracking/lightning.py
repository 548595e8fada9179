"""The statistics of the bound in a run of Lightning's Trainer."""

from __future__ import annotations

from os import PathLike
from typing import Any

from lightning.pytorch.callbacks import Callback

from .rows import NewRows, scalars, unwrapped
from .run_log import RunLog


class BoundStatsCallback(Callback):
    """Logs each tracked step to the Trainer's loggers, and to a run log if a folder is named.

    ``Trainer(callbacks=[BoundStatsCallback()])``. Of several processes the first one logs, of
    sharded tensors its own elements.

    Args:
        run_dir: where a ``RunLog`` goes, with the loss of tracked steps and of every
            ``log_every_n_steps``. Default: None.
        per_tensor: a tag for every tensor instead of every param group. Default: False.
        optimizer: which of the Trainer's optimizers. Default: 0.
    """

    def __init__(
        self,
        run_dir: str | PathLike[str] | None = None,
        per_tensor: bool = False,
        optimizer: int = 0,
    ) -> None:
        self._run_dir, self._index = run_dir, optimizer
        self._run_log: RunLog | None = None
        self._new = NewRows(per_tensor)
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Notes which step a checkpoint goes on from."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the rows, if this batch ended with a step that was tracked."""
        if trainer.global_step == self._step:  # gradients are accumulated over several batches
            return
        self._step = trainer.global_step
        if not trainer.is_global_zero:
            return
        optimizer = unwrapped(trainer.optimizers[self._index])
        with self._new.of(optimizer) as rows:
            if rows:
                for logger in trainer.loggers:
                    logger.log_metrics(scalars(rows), step=self._step)
        if self._run_dir is not None:
            if self._run_log is None:  # not before: other processes shall not touch the file
                self._run_log = RunLog(self._run_dir)
            # A loss on a GPU is waited for, so only where the Trainer waits anyway.
            is_due = rows or self._step % trainer.log_every_n_steps == 0
            loss = _loss(trainer, pl_module, outputs) if is_due else None
            # The Trainer's steps alone: of several optimizers they count all.
            self._run_log.log(optimizer, loss, step=self._step)


def _loss(trainer: Any, pl_module: Any, outputs: Any) -> Any:
    """The loss as ``training_step`` returned it, of which the Trainer hands on a part."""
    loss = (outputs or {}).get("loss")
    if loss is None or not pl_module.automatic_optimization:
        return loss
    return loss * trainer.accumulate_grad_batches
