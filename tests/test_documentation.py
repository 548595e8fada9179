"""What the docstrings say is so: their defaults and their example."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Callable
from types import ModuleType

import pytest

import adamod_fused.adamod
import adamod_fused.checkpoint.conversion
from adamod_fused import AdaMod, checkpoint, functional

DOCUMENTED = [
    AdaMod,
    functional.adamod,
    checkpoint.convert,
    checkpoint.export,
    checkpoint.to_tensors,
    checkpoint.from_tensors,
]


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda d: d.__name__)
def test_documented_defaults_are_those_of_the_signature(documented: Callable) -> None:
    text = inspect.getdoc(documented)
    arguments = re.search(r"\nArgs:\n(.*?)\n\n", text, re.DOTALL).group(1)
    entries = dict(re.findall(r"^    (\w+): (.*?)(?=\n    \w|\Z)", arguments, re.DOTALL | re.M))
    parameters = inspect.signature(documented).parameters
    assert list(entries) == list(parameters)
    for name, parameter in parameters.items():
        stated = re.search(r"Default: (.+?)\.(?=\s|$)", entries[name])
        if parameter.default is parameter.empty:
            assert stated is None, name
        else:
            assert ast.literal_eval(stated.group(1)) == parameter.default, name


@pytest.mark.parametrize("module", [adamod_fused.adamod, adamod_fused.checkpoint.conversion])
def test_the_examples_in_the_documentation_run(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted >= 5
    assert failed == 0
