"""Room on the disk for what makes room: a file that gives its blocks to verbs that delete, where a full disk would refuse them.

SQLite needs a few pages for each transaction, also for one that only deletes, and some files of its own to open a database at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIZE = 4 << 20


class DiskReserve:
    """``<root>/reserve``. Thread-safe; verbs may use it side by side."""

    def __init__(self, root: Path) -> None:
        self._path = root / "reserve"
        self._root = root
        self._lock = threading.Lock()
        self._users = 0
        self.is_given = False
        """Whether the disk was full when a verb asked last."""

    def _is_low(self) -> bool:
        found = os.statvfs(self._root)
        return found.f_bavail * found.f_frsize < SIZE

    @contextmanager
    def used(self) -> Iterator[None]:
        """Meanwhile the blocks are free, where others are short; afterwards they are taken again, as far as there are any."""
        with self._lock:
            self._users += 1
            self.is_given = self._is_low()
            if self.is_given:
                self._path.unlink(missing_ok=True)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._take()

    def _take(self) -> None:
        with suppress(OSError):
            if self._path.exists() or self._is_low():
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
            except OSError:
                self._path.unlink(missing_ok=True)
            finally:
                os.close(fd)


__all__ = ["SIZE", "DiskReserve"]
