"""Reads a layer a little ahead: one thread inflates, one digests, and one writes files; each needs the interpreter for little."""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import Any, Protocol

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


class DigestThread:
    """A digest (hashlib) that a thread of its own takes over: update hardly ever waits for it."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._room = threading.Semaphore(_PIECES)
        self._pieces: SimpleQueue[bytes] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="digest", daemon=True)
        self._thread.start()

    def update(self, piece: bytes) -> None:
        if piece:
            self._room.acquire()
            self._pieces.put(piece)

    def close(self) -> None:
        """Nothing comes any more; the thread ends when it has done what has come. Idempotent."""
        self._pieces.put(b"")

    def hexdigest(self) -> str:
        """Of all that was given; ends it."""
        self.close()
        self._thread.join()
        return str(self._digest.hexdigest())

    def _run(self) -> None:
        while piece := self._pieces.get():
            self._digest.update(piece)
            self._room.release()


__all__ = ["DigestThread", "ReadAhead"]
