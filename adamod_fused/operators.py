"""Every rule as two operators of ``torch.library``, for plain tensors and for all formats.

They are ``torch.ops.adamod_fused.<rule>_`` and ``<rule>_coded_``. Graph tools (torch.compile,
torch.export) keep such an operator as one node and learn from its schema what it writes. The
schema is made from the rule: its states, and the keyword arguments of its ``prepare``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from . import formats, lists
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

# Of formats.py's keywords and of lists.py's. They make an operator of their own: torch 2.6 cannot
# call one that writes to an argument which was left out.
_CODING = {
    "state_format": "str state_format",
    "weight_format": "str weight_format",
    "min_coded_numel": f"int min_coded_numel={formats.DEFAULTS['min_coded_numel']}",
    "seed": f"int seed={formats.DEFAULTS['seed']}",
    "ordinals": "int[] ordinals=[]",
}


def hyperparameters_of(rule: Any) -> dict[str, str]:
    """Names of a rule's hyperparameters, each with its type in the operator's schema."""
    _, *arguments = inspect.signature(rule.prepare).parameters.values()  # the first is the step
    return {argument.name: _SCHEMA_TYPES[argument.annotation] for argument in arguments}


def _names_of_lists(rule: Any, coded: bool) -> tuple[str, ...]:
    return (*lists.names_of_lists(rule), *(lists.BESIDE.values() if coded else ()))


def schema_of(rule: Any, coded: bool = False) -> str:
    """The schema of a rule's operator, without its name."""
    tensors = (
        f"Tensor{'' if name == 'grads' else f'(a{i}!)'}[] {name}"
        for i, name in enumerate(_names_of_lists(rule, coded))
    )
    hyperparameters = (f"{kind} {name}" for name, kind in hyperparameters_of(rule).items())
    keywords = (_CODING if coded else {}) | _KEYWORDS
    return f"({', '.join((*tensors, *hyperparameters, *keywords.values()))}) -> ()"


def register(rule: Any, check: Callable[[dict[str, Any]], None], coded: bool = False) -> Any:
    """Makes a rule's operator.

    Args:
        rule: a rule of ``reference.py``.
        check: raises TypeError or ValueError where a hyperparameter is bad.
        coded: makes the operator for all formats. Beside the lists of the other it writes
            ``block_exponents`` and ``param_remainders``, with a tensor for each parameter that
            has one; ``ordinals`` are the parameters' numbers in the optimizer, none for 0, 1, ...
            and ``seed`` counts modulo 2^64.

    Returns:
        ``torch.ops.adamod_fused.<rule>_.default`` or ``<rule>_coded_.default``. Its numbers
        are 0-dim tensors; tensors that require gradients must be given under ``torch.no_grad()``.
        It raises what the optimizer class raises, before any tensor has changed.
    """
    names = _names_of_lists(rule, coded)
    hyperparameters = tuple(hyperparameters_of(rule))
    num_plain = len(lists.names_of_lists(rule))
    others = (*(_CODING if coded else ()), *_KEYWORDS)

    # torch.library leaves out a trailing argument that has its default: all go by their place.
    def step(*arguments: Any, **named: Any) -> None:
        given = dict(zip((*names, *hyperparameters, *others), arguments, strict=False)) | named
        numbers = {name: as_numbers(given[name]) for name in hyperparameters}
        check(numbers)
        keywords = {name: given[name] for name in _KEYWORDS if name in given}
        tensors = [given[name] for name in names]
        if coded:
            stored = {name: given.get(name, default) for name, default in formats.DEFAULTS.items()}
            stored["seed"] %= 1 << 64  # the schema's numbers have a sign
            beside, ordinals = tensors[num_plain:], given.get("ordinals", ())
            keywords["coding"] = lists.Coding(stored, beside, ordinals)
        lists.step(rule, tensors[:num_plain], numbers, **keywords)

    def fake_step(*_: Any, **__: Any) -> None:
        """Writes in place and returns nothing: shapes, dtypes and devices stay as they are."""

    name = f"{rule.name}_coded_" if coded else f"{rule.name}_"
    written = [name for name in names if name != "grads"]
    operator = torch.library.custom_op(
        f"adamod_fused::{name}", step, mutates_args=written, schema=schema_of(rule, coded)
    )
    operator.register_fake(fake_step)
    return getattr(torch.ops.adamod_fused, name).default
