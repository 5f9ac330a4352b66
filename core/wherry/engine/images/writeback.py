"""Whether what was written to a file system has reached its disk, told for all layers of a snapshotter at once.

An error of a write-back is told once to each descriptor that was open before it (errseq_t: Documentation/core-api/errseq.rst in
the kernel), and to nobody for certain who opens later: another one's sync may have taken the only report. So one
descriptor is opened before the first write and kept, and every sync goes through it. Which layer an error belongs to the kernel
does not say: all that were not yet known to be on disk are lost, those in the making too.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.engine.state.database import boot_id
from wherry.linux.path import syncfs


class WriteBack:
    """word is what unsynced layers are labelled with: who alone can vouch for them. After an error it is another one."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self.word = _word()
        #: Idempotent. A descriptor holds the file system: it can't be unmounted meanwhile.
        self.close = weakref.finalize(self, os.close, self._fd)

    @contextmanager
    def sound(self, begun: str) -> Iterator[None]:
        """The block says that a layer is whole, begun being the word when its first byte was written. OSError when writes were
        lost since; none are found lost during the block."""
        with self._lock:
            if begun != self.word:
                raise OSError(errno.EIO, "the file system lost writes while the layer was unpacked")
            yield

    def sync(self) -> None:
        """syncfs(2). OSError, and another word, when something was lost since the last time."""
        try:
            syncfs(self._fd)
        except OSError:
            with self._lock:
                self.word = _word()
            raise


def _word() -> str:
    return f"{boot_id()}/{secrets.token_hex(8)}"


__all__ = ["WriteBack"]
