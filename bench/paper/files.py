"""JSON files whose existence means that something is done: written whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adamod_fused.files import write_whole


class UnreadableFileError(RuntimeError):
    """A file that should hold JSON does not."""


def write_json(data: Any, path: Path) -> None:
    """In one line: what only programs read."""
    write_whole(json.dumps(data, allow_nan=False), path)


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote.

    Raises:
        OSError: there is no such file.
        UnreadableFileError: the file has been damaged since; the message says to remove it.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UnreadableFileError(f"{path}: not JSON; remove the file ({error})") from None
