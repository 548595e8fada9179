"""What torch wraps around every optimizer's ``step``: hooks, and a range in the profiler's trace.

torch's wrapper takes 6 us when all it needs is in the caches and 40 when it is not, as in training:
as much as the rest of a step of 150 tensors. Nearly all of it is the range, which torch itself has
in a quick form, 0.3 us. Here that one is used, and torch's wrapper where there are hooks to run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer

Step = Callable[..., Any]

# Private names: where a later torch lacks one, it wraps the step as it does any other.
_global_hooks = [
    getattr(torch_optimizer, name, None)
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
]
_range: Any = getattr(torch._C._profiler, "_RecordFunctionFast", None)
_is_known = (
    None not in (*_global_hooks, _range)
    and hasattr(Optimizer, "profile_hook_step")
    and hasattr(Optimizer, "_optimizer_step_code")
)


def with_step_hooks(step: Step) -> Step:
    """``step`` of an optimizer class with hooks and a range around it, as torch has them."""
    if not _is_known:
        return step
    wrapped = Optimizer.profile_hook_step(step)

    def hooked_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self).step is not hooked_step:  # a subclass's own step, with hooks, called this
            return step(self, *args, **kwargs)
        hooks = (*_global_hooks, self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks)
        if any(hooks) or torch.compiler.is_compiling():
            return wrapped(self, *args, **kwargs)
        with _range(f"Optimizer.step#{type(self).__name__}.step"):
            result = step(self, *args, **kwargs)
            self._optimizer_step_code()  # where a profiler looks for optimizers
            return result

    functools.update_wrapper(hooked_step, step)
    hooked_step.hooked = True  # type: ignore[attr-defined]  # or torch would wrap it once more
    return hooked_step
