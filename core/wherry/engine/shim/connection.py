"""One connection to the shim, for the requests of all threads.

Whichever thread waits reads for all: a lone request costs no hand-over between threads, and with many in flight the answers find
their owners.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.linux import framing

LOST = "the connection was lost"
#: What sendmsg(2) says of the descriptors of one frame (unix(7)), before it sends any of it. A socket is never closed while in use.
_OWN_FAULT = frozenset({errno.EBADF, errno.ETOOMANYREFS, errno.EINVAL})


class _Slot:
    """One request in flight: its thread sleeps on lock until it is answered, or is to read for all."""

    __slots__ = ("answer", "fds", "lock", "waiting")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.waiting = False
        self.answer: dict[str, Any] | None = None
        self.fds: list[int] = []


class ShimConnection:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = framing.Reader(sock)
        self._sending = threading.Lock()
        self._state = threading.Lock()
        self._slots: dict[int, _Slot] = {}
        self._next = 0
        self._reading = False
        self.lost = False
        self.instance = ""  # of the shim, as it said in its greeting

    def call(self, op: str, fields: Mapping[str, Any], fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
        """The answer and its descriptors. ConnectionError when there will be none."""
        return self.wait(*self.post(op, fields, fds))

    def post(self, op: str, fields: Mapping[str, Any], fds: Sequence[int]) -> tuple[int, _Slot]:
        """Sends a request; ``wait`` takes its answer, now, later or never. ConnectionError when the shim is lost; another OSError
        or a FrameError when nothing of this request could be sent, which is no other one's concern."""
        slot = _Slot()
        with self._state:
            if self.lost:
                raise ConnectionResetError(errno.ECONNRESET, LOST)
            self._next += 1
            number = self._next
            self._slots[number] = slot
        try:
            with self._sending:
                framing.send(self._socket, {"id": number, "op": op, **fields}, fds)
        except (OSError, framing.FrameError) as error:
            if isinstance(error, framing.FrameError) or error.errno in _OWN_FAULT:
                with self._state:
                    self._slots.pop(number, None)
                raise
            self._lose()
        return number, slot

    def tell(self, op: str, fields: Mapping[str, Any]) -> None:
        """Sends a request that nobody wants an answer to, and the shim gives none. Raises as ``post``."""
        if self.lost:
            raise ConnectionResetError(errno.ECONNRESET, LOST)
        try:
            with self._sending:
                framing.send(self._socket, {"op": op, **fields})
        except (OSError, framing.FrameError) as error:
            if isinstance(error, framing.FrameError) or error.errno in _OWN_FAULT:
                raise
            self._lose()

    def wait(self, number: int, slot: _Slot) -> tuple[dict[str, Any], list[int]]:
        """The answer to a request that was posted. ConnectionError when there will be none."""
        while slot.answer is None:
            with self._state:
                if self.lost and slot.answer is None:
                    self._slots.pop(number, None)
                    raise ConnectionResetError(errno.ECONNRESET, LOST)
                mine = not self._reading
                slot.waiting = not mine
                if mine:
                    self._reading = True
            if mine:
                self._read_for_all(slot)
            else:
                slot.lock.acquire()
        return slot.answer, slot.fds

    def _read_for_all(self, own: _Slot) -> None:
        """Until our own answer is there; then another sleeper takes over."""
        try:
            while own.answer is None:
                frame = self._reader.next()
                if frame is None:
                    self._lose()
                    return
                self._deliver(*frame)
        except (OSError, framing.FrameError):
            self._lose()
        finally:
            with self._state:
                self._reading = False
                if self.lost:
                    self._socket.close()
                heir = next((slot for slot in self._slots.values() if slot.waiting), None)
            if heir is not None:
                _wake(heir)

    def _deliver(self, message: dict[str, Any], fds: list[int]) -> None:
        with self._state:
            slot = self._slots.pop(message.get("id", -1), None)
        if slot is None:
            for fd in fds:
                os.close(fd)
            return
        slot.fds = fds
        slot.answer = message
        _wake(slot)

    def _lose(self) -> None:
        with self._state:
            self.lost = True
            slots = list(self._slots.values())
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for slot in slots:
            _wake(slot)

    def close(self) -> None:
        self._lose()
        with self._state:
            if not self._reading:  # else whoever reads closes it
                self._socket.close()


def _wake(slot: _Slot) -> None:
    with contextlib.suppress(RuntimeError):  # awake already
        slot.lock.release()
