"""The statistics of the bound in a run of Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from transformers import TrainerCallback

from .rows import NewRows, scalars, unwrapped
from .run_log import RunLog


class BoundStatsCallback(TrainerCallback):
    """Logs each tracked step to the Trainer's loggers, to a run log, or to both.

    ``trainer.add_callback(BoundStatsCallback(trainer.log, run_dir=folder))``. Of several
    processes the first one logs, of sharded tensors its own elements.

    Args:
        log: the Trainer's ``log``: all its loggers then get the numbers. Default: None.
        run_dir: where a ``RunLog`` goes, with the loss as often as the Trainer logs it.
            Default: None.
        per_tensor: a tag for every tensor instead of every param group. Default: False.

    Raises:
        ValueError: there is neither ``log`` nor ``run_dir``.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float]], None] | None = None,
        run_dir: str | PathLike[str] | None = None,
        per_tensor: bool = False,
    ) -> None:
        if log is None and run_dir is None:
            raise ValueError("log=None and run_dir=None log nothing; give trainer.log or a folder")
        self._log, self._run_dir = log, run_dir
        self._run_log: RunLog | None = None
        self._new = NewRows(per_tensor)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Logs the rows, if the step that ended was tracked."""
        if not state.is_world_process_zero:
            return
        optimizer = unwrapped(others["optimizer"])
        if self._log is not None:
            with self._new.of(optimizer) as rows:
                if rows:
                    self._log(scalars(rows))
        self._write(optimizer, state)

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keeps the Trainer's loss, the mean since it logged last."""
        loss = (others.get("logs") or {}).get("loss")
        if state.is_world_process_zero and loss is not None:
            self._write(unwrapped(others["optimizer"]), state, loss)

    def _write(self, optimizer: Any, state: Any, loss: float | None = None) -> None:
        if self._run_dir is None:
            return
        if self._run_log is None:  # not before: other processes shall not touch the file
            self._run_log = RunLog(self._run_dir)
        # The Trainer's steps alone: a GradScaler may skip some of the optimizer's.
        self._run_log.log(optimizer, loss, step=state.global_step)
