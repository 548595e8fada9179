"""Where the statistics of the bound go: a file in the run's folder, and the loggers of others.

``RunLog`` writes what ``python -m adamod_fused report`` draws. ``tensorboard``, ``wandb``,
``huggingface`` and ``lightning`` are modules to import by name: each needs the package that it is
named after, and nothing else here does.
"""

from .run_log import RunLog, read

__all__ = ["RunLog", "read"]
