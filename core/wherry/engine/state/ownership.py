"""One engine a root, and one a run directory: flock(2) on a file that says whose it is."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from wherry.api import Unavailable


class DirectoryLock:
    """Held until close. Unavailable when another process has it; its pid is in the error."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise Unavailable(
                f'{what} "{path.parent}"',
                f"an engine with pid {holder} has it",
                "stop that engine, or use another --root and --run",
            ) from None
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # on a full disk the next one is not told whose it is
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """The file stays: to remove it would let two processes each lock a file of that name."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
