"""Every rule as an operator of ``torch.library``: ``torch.ops.adamod_fused.<rule>_``.

Graph tools (torch.compile, torch.export) keep such an operator as one node and learn from its
schema what it writes. The schema is made from the rule: its states, and the keyword arguments of
its ``prepare``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from . import lists
from .hyperparameters import as_numbers

# By how `prepare` annotates an argument. Numbers are tensors: one that a scheduler changes is then
# an input of a compiled graph, where a float would be a constant of it.
_SCHEMA_TYPES = {
    "float": "Tensor",
    "tuple[float, float]": "Tensor[]",
    "bool": "bool",
    "str": "str",
}

# Of execution.py's keywords those that choose the kernel, as the schema has them.
_KEYWORDS = {"backend": "str? backend=None", "fused": "bool fused=False"}


def hyperparameters_of(rule: Any) -> dict[str, str]:
    """Names of a rule's hyperparameters, each with its type in the operator's schema."""
    _, *arguments = inspect.signature(rule.prepare).parameters.values()  # the first is the step
    return {argument.name: _SCHEMA_TYPES[argument.annotation] for argument in arguments}


def schema_of(rule: Any) -> str:
    """The schema of a rule's operator, without its name."""
    written = (
        f"Tensor{'' if name == 'grads' else f'(a{i}!)'}[] {name}"
        for i, name in enumerate(lists.names_of_lists(rule))
    )
    hyperparameters = (f"{kind} {name}" for name, kind in hyperparameters_of(rule).items())
    return f"({', '.join((*written, *hyperparameters, *_KEYWORDS.values()))}) -> ()"


def register(rule: Any, check: Callable[[dict[str, Any]], None]) -> Any:
    """Makes a rule's operator.

    Args:
        rule: a rule of ``reference.py``.
        check: raises TypeError or ValueError where a hyperparameter is bad.

    Returns:
        ``torch.ops.adamod_fused.<rule>_.default``. Its numbers are 0-dim tensors; tensors that
        require gradients must be given under ``torch.no_grad()``. It raises what the optimizer
        class raises, before any tensor has changed.
    """
    names = lists.names_of_lists(rule)
    hyperparameters = tuple(hyperparameters_of(rule))

    # torch.library leaves out a trailing argument that has its default: all go by their place.
    def step(*arguments: Any, **named: Any) -> None:
        given = dict(zip((*names, *hyperparameters, *_KEYWORDS), arguments, strict=False)) | named
        numbers = {name: as_numbers(given[name]) for name in hyperparameters}
        check(numbers)
        keywords = {name: given[name] for name in _KEYWORDS if name in given}
        lists.step(rule, [given[name] for name in names], numbers, **keywords)

    def fake_step(*_: Any, **__: Any) -> None:
        """Writes in place and returns nothing: shapes, dtypes and devices stay as they are."""

    name = f"adamod_fused::{rule.name}_"
    written = [name for name in names if name != "grads"]
    operator = torch.library.custom_op(name, step, mutates_args=written, schema=schema_of(rule))
    operator.register_fake(fake_step)
    return getattr(torch.ops.adamod_fused, f"{rule.name}_").default
