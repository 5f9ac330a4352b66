"""Layers on their way into the store, for whoever unpacks them: they can be waited for, or read while they come."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import termios
import threading
from collections.abc import Collection
from concurrent.futures import CancelledError
from typing import BinaryIO

from wherry.api import Ingest
from wherry.layers.growing import ALL, MORE


class PartialBlob:
    """A blob that is being written: stream has what has come, feed (a pipe) says when there is more (``wherry.layers.growing``)."""

    def __init__(self, stream: BinaryIO, feed: BinaryIO, arrival: IncomingLayer) -> None:
        self.stream = stream
        self.feed = feed
        self._arrival = arrival

    @property
    def whole(self) -> bool:
        """Whether the reader was told that it has all."""
        return self._arrival.whole

    def close(self) -> None:
        self.stream.close()
        self.feed.close()


class IncomingLayer:
    """One layer. The fetch says what happens to it; lock is that of all layers of the image."""

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._stream: BinaryIO | None = None
        self._feeds: list[int] = []
        self._error: BaseException | None = None
        self.ended = self.whole = self.broken = False

    # the fetch

    def begin(self, ingest: Ingest) -> None:
        """Bytes come, or are there already."""
        with self._lock:
            if not (self.broken or self.ended or self._stream):
                self._stream = ingest.reader()
                self._lock.notify_all()

    def more(self) -> None:
        with self._lock:
            for fd in self._feeds:
                if not _unread(fd):  # else the reader has still to look, and will find all
                    _tell(fd, MORE)

    def all(self) -> None:
        """Nothing more will come; whether these are the bytes that were wanted is still to be seen."""
        with self._lock:
            self.whole = not self.broken
            for fd in self._feeds:
                _tell(fd, ALL)

    def restart(self) -> None:
        """What came is thrown away: whoever has read it begins anew, when all is there."""
        with self._lock:
            self.broken, self.whole = True, False
            self.hang_up()

    def end(self, error: BaseException | None = None) -> None:
        """It is in the store, or will not be."""
        with self._lock:
            self.ended, self._error = True, error
            if error is not None:
                self.broken = True
            self.hang_up()
            self._lock.notify_all()

    # whoever unpacks; the lock is held

    def hang_up(self) -> None:
        for fd in self._feeds:
            os.close(fd)
        self._feeds.clear()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def tap(self) -> PartialBlob | None:
        """None: not while it comes."""
        if self._stream is None:
            return None
        stream = open(os.dup(self._stream.fileno()), "rb", buffering=0)  # noqa: SIM115 - the Tap closes it
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._feeds.append(writer)
        if self.whole:
            _tell(writer, ALL)
        return PartialBlob(stream, open(reader, "rb", buffering=0), self)

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class IncomingLayers:
    """Those of one image, by digest. What is not among them is in the store."""

    def __init__(self, digests: Collection[str] = ()) -> None:
        self._lock = threading.Condition()
        self._stopped = False
        self._layers = {digest: IncomingLayer(self._lock) for digest in digests}

    def of(self, digest: str) -> IncomingLayer:
        return self._layers[digest]

    def landed(self, digest: str) -> None:
        """Waits until the layer is in the store; raises what kept it from there. CancelledError after ``stop``."""
        arrival = self._layers.get(digest)
        if arrival is not None:
            with self._lock:
                self._lock.wait_for(lambda: arrival.ended or self._stopped)
                if not arrival.ended:
                    raise CancelledError
                arrival.check()

    def tap(self, digest: str) -> PartialBlob | None:
        """Waits until the layer begins to come, and reads along; None where it is in the store, or has to be waited for."""
        arrival = self._layers.get(digest)
        if arrival is None:
            return None
        with self._lock:
            self._lock.wait_for(lambda: arrival._stream is not None or arrival.broken or arrival.ended or self._stopped)
            return None if self._stopped else arrival.tap()

    def stop(self) -> None:
        """Nobody waits any more, and nobody reads along."""
        with self._lock:
            self._stopped = True
            for arrival in self._layers.values():
                arrival.broken = True
                arrival.hang_up()
            self._lock.notify_all()


def _unread(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _tell(fd: int, word: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # a reader that has ended
        os.write(fd, word)


__all__ = ["IncomingLayer", "IncomingLayers", "PartialBlob"]
