"""What must survive a killed logger beside the bytes themselves: a few words for each task, in memory that the shim holds too.

Raw bytes live in pipes that both processes hold, so the kernel counts them: splice(2) moves each byte from one pipe to the
next, it is never in both and never in neither. What the kernel does not know is how far the log file has come; that is one
64-bit word, stored by one instruction, so that a kill leaves either the old or the new one.
"""

from __future__ import annotations

import mmap
import os

#: Bytes of the sparse file; a page is taken when its first word is written.
SIZE = 16 << 20
SLOT = 64
_WORDS = SLOT // 8

_KNOWN = 1 << 63
_DROP = 1 << 62
_SECOND = 1 << 61
_KEEP_SHIFT, _KEEP_BITS = 40, 21
_SIZE_MASK = (1 << 40) - 1


def make() -> int:
    """A descriptor of the shared memory, all zero."""
    fd = os.memfd_create("wherry-logger", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


class Slots:
    """The shim's side: which slots are taken."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """A slot of zeros. OSError (EMFILE) when there is none left."""
        if self._free:
            slot = self._free.pop()
            os.pwrite(self.fd, bytes(SLOT), slot * SLOT)
            return slot
        if (self._next + 1) * SLOT > SIZE:
            raise OSError(24, os.strerror(24), "logger slots")
        self._next += 1
        return self._next - 1

    def give(self, slot: int) -> None:
        """Only once the logger has said that it is done with it."""
        self._free.append(slot)

    def adopt(self, taken: set[int]) -> None:
        """After the tasks were taken over from a logger that survived."""
        self._next = max(taken, default=-1) + 1
        self._free = [slot for slot in range(self._next) if slot not in taken]


class Arena:
    """The logger's side: the words of each slot."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._words = memoryview(self._map).cast("Q")

    def log(self, slot: int) -> tuple[int, int, int] | None:
        """(size, stream, keep): the log file is valid up to size bytes. keep -1: what is staged is not in it yet; else all
        that is staged of that stream (0 stdout, 1 stderr) but the last keep bytes is. None when nothing was written."""
        word = self._words[slot * _WORDS]
        if not word & _KNOWN:
            return None
        keep = (word >> _KEEP_SHIFT) & ((1 << _KEEP_BITS) - 1) if word & _DROP else -1
        return word & _SIZE_MASK, int(bool(word & _SECOND)), keep

    def set_log(self, slot: int, size: int, stream: int = 0, keep: int = -1) -> None:
        word = _KNOWN | size
        if keep >= 0:
            word |= _DROP | (keep << _KEEP_SHIFT) | (_SECOND if stream else 0)
        self._words[slot * _WORDS] = word

    def shared(self, slot: int, stream: int) -> bool:
        """Whether what is in the stream's fan pipe was given to all its readers already."""
        return bool(self._words[slot * _WORDS + 1 + stream])

    def set_shared(self, slot: int, stream: int, value: bool) -> None:
        self._words[slot * _WORDS + 1 + stream] = int(value)
