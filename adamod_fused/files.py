"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import uuid
from pathlib import Path


def write_whole(text: str, path: Path) -> None:
    """Writes a new file and renames it to ``path``.

    A full disk, an interruption or text that has no UTF-8 leaves an old file at ``path`` as it was.
    A symbolic link at ``path`` is replaced; the file that it points to is not touched.

    Raises:
        OSError: there is something other than a file at ``path``, or no file can be written there.
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    data = text.encode()
    if path.exists() and not path.is_file():  # a rename would replace a device, even /dev/null
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # A name that no other process uses, and no file of the user's has.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
