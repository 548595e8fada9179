"""An extension module from a file: the engine built with other constants, or for the host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def import_extension(path: Path) -> ModuleType:
    """Imports an extension module from a file, whatever the import path holds.

    Its code knows it by the last part of the name; without the first, pybind11 3 would hand out
    again the module that it has made under that name, from another file.
    """
    name = path.name.partition(".")[0]
    spec = importlib.util.spec_from_file_location(f"{path.parent}.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
