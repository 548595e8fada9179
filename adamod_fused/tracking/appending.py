"""Appending whole lines to a file, by one process at a time."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import ClassVar

CUT = b" (cut off)\n"
"""Ends a line that a killed process began; no JSON ends like this."""


class FolderLock:
    """Keeps other processes from a folder for as long as it lives; the kernel ends it with ours."""

    _ours: ClassVar[weakref.WeakValueDictionary[Path, FolderLock]] = weakref.WeakValueDictionary()

    def __init__(self, folder: Path) -> None:
        # The folder, not a file in it: that may not exist yet, or may be replaced.
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise RuntimeError(
                f"another process logs into {folder}, and the lines of two runs would mix; give "
                "each run a folder of its own, or end the other process"
            ) from error
        except OSError:
            pass  # a network file system without locks

    @classmethod
    def of(cls, folder: Path) -> FolderLock:
        """The lock on ``folder`` that everything in this process shares.

        Raises:
            RuntimeError: another process holds it.
            OSError: there is no such folder.
        """
        key = folder.resolve()
        lock = cls._ours.get(key)
        if lock is None:
            lock = cls._ours[key] = cls(folder)
        return lock

    @classmethod
    def _leave_to_parent(cls) -> None:
        """In a forked process: its parent keeps the locks, even if this process lives longer."""
        for lock in cls._ours.values():
            lock._close()
        cls._ours = weakref.WeakValueDictionary()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # the folder could be opened
            self._close()


os.register_at_fork(after_in_child=FolderLock._leave_to_parent)


def append_line(path: Path, line: bytes) -> None:
    """Appends ``line``; where it fails, the file is as it was.

    A last line without an end was cut off by a kill. It stays in the file, and is marked.
    """
    # Unbuffered: what a buffer could not write it would try to write once more on closing.
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        is_cut = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        rest = memoryview((CUT if is_cut else b"") + line + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(end)  # half a line would make the next one unreadable too
            raise
