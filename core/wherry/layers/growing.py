"""A blob that is read while it is still being fetched: a file that only grows, and a pipe that says so."""

from __future__ import annotations

import os

from wherry.errors import Unavailable

#: What the pipe carries: there is more; this is all. The end of the pipe without the second: it will never be all.
MORE, ALL = b"+", b"."
_WORDS = 1 << 16


class GrowingBlob:
    """Reads the file from its beginning, waiting for what is not there yet. Unavailable where the writer gave up."""

    def __init__(self, fd: int, feed: int) -> None:
        self._fd = fd
        self._feed = feed
        self._at = 0
        self._all = False

    def read(self, size: int, /) -> bytes:
        """Between 1 and size bytes; b"" at the end of a file that is whole."""
        while not (data := os.pread(self._fd, size, self._at)):
            if self._all:
                return b""
            words = os.read(self._feed, _WORDS)
            if not words:
                raise Unavailable("layer", "its bytes do not come any more")
            self._all = ALL in words
        self._at += len(data)
        return data


__all__ = ["ALL", "MORE", "GrowingBlob"]
