"""Reads a layer a little ahead: one thread inflates and digests while another writes files; either needs the interpreter for little."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

_PIECE = 1 << 20
_PIECES = 4


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ReadAhead:
    """As the source, whose read is called by the thread only, until it has answered b"" or ``close`` is called. What it raises
    comes out of read here."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._room = threading.Semaphore(_PIECES)
        self._filled = threading.Semaphore(0)
        self._pieces: deque[bytes | BaseException] = deque()
        self._over = False
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def read(self, size: int = _PIECE, /) -> bytes:
        """The next piece; b"" at the end, and from then on."""
        if self._over:
            return b""
        self._filled.acquire()
        piece = self._pieces.popleft()
        if isinstance(piece, BaseException):
            self._over = True
            raise piece
        self._room.release()
        self._over = not piece
        return piece

    def close(self) -> None:
        """The thread ends when it has its next piece, which nobody waits for: a pipe may never give one. Idempotent."""
        self._over = True
        self._room.release()

    def _run(self) -> None:
        while True:
            self._room.acquire()
            if self._over:
                return
            try:
                piece = self._source.read(_PIECE)
            except BaseException as error:
                self._pieces.append(error)
                self._filled.release()
                return
            self._pieces.append(piece)
            self._filled.release()
            if not piece:
                return


__all__ = ["ReadAhead"]
