"""Frames over a non-blocking socket in a loop (framing: wherry.linux.framing)."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque

from wherry.linux import framing
from wherry.linux.loop import ERR, HUP, IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from wherry.linux.loop import Loop

#: Frames that nobody reads pile up to this many bytes; then the peer is dropped.
MAX_BACKLOG = 64 << 20
#: sendmsg(2), unix(7): the peer is there, and the kernel has no room now.
_LATER = frozenset((errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS))


class FrameChannel:
    """One peer. Frames out are queued and never block; frames in go to on_frame(channel, message, fds), who owns the fds.

    on_close(channel) is called once, when the peer is gone or sent what is no frame; the socket is closed by then.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_frame: Callable[[FrameChannel, dict[str, Any], list[int]], None],
        on_close: Callable[[FrameChannel], None],
    ) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.socket = sock
        self.reader = framing.Reader(sock)
        self.closed = False
        self.state: Any = None  # the owner's
        self._on_frame = on_frame
        self._on_close = on_close
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._backlog = 0
        self._deaf = False  # the peer takes nothing more; what it sent before it died is still to be read
        loop.add(sock.fileno(), IN, self._ready)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Queues a frame; descriptors are duplicated at once when they can't be sent at once, and stay the caller's."""
        if self.closed or self._deaf:
            return
        data = memoryview(framing.encode(message, fds))
        if not self._out:
            sent = self._write(data, fds)
            if sent == len(data) or self._deaf:
                return
            if sent:
                data, fds = data[sent:], ()
            self.loop.modify(self.socket.fileno(), IN | OUT)
        self._out.append((data, tuple(os.dup(fd) for fd in fds)))
        self._backlog += len(data)
        if self._backlog > MAX_BACKLOG:
            self.close()

    def _write(self, data: memoryview, fds: Iterable[int]) -> int:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in _LATER:
                return 0
            self._deaf = True
            return 0

    def _flush(self) -> None:
        while self._out and not self._deaf:
            data, fds = self._out[0]
            sent = self._write(data, fds)
            if self._deaf:
                break
            if not sent:
                return
            for fd in fds:
                os.close(fd)
            self._backlog -= sent
            if sent < len(data):
                self._out[0] = (data[sent:], ())
            else:
                self._out.popleft()
        if self._deaf:
            self._forget()
        self.loop.modify(self.socket.fileno(), IN)

    def _forget(self) -> None:
        for _data, fds in self._out:
            for fd in fds:
                os.close(fd)
        self._out.clear()
        self._backlog = 0

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if self.closed or not events & (IN | HUP | ERR):
            return
        try:
            alive = self.reader.feed()
        except BlockingIOError:
            return
        except (OSError, framing.FrameError):
            alive = False
        self.take()
        if not alive and not self.closed:
            self.close()

    def take(self) -> None:
        """Hands out the whole frames that have arrived."""
        try:
            while not self.closed and (frame := self.reader.pop()) is not None:
                self._on_frame(self, *frame)
        except framing.FrameError:
            self.close()

    def take_rest(self) -> None:
        """Handles what a dead peer still left in the socket: descriptors in it would be lost otherwise."""
        try:
            while not self.closed and self.reader.feed():
                self.take()
        except (OSError, framing.FrameError):
            pass
        if not self.closed:
            self.take()

    def drain(self) -> None:
        """Sends what is queued, blocking for at most a second: before an exec or an exit."""
        if self._out and not self.closed:
            self.socket.settimeout(1.0)
            self._flush()
            if not self.closed:
                self.socket.setblocking(False)

    def leftover(self) -> tuple[bytes, list[int]]:
        """What has arrived of an unfinished frame, and its descriptors, which stay the reader's."""
        return bytes(self.reader._buffer), list(self.reader._fds)

    def give_back(self, unread: bytes, fds: list[int]) -> None:
        """The other way round, after an exec."""
        self.reader._buffer += unread
        self.reader._fds += fds
        self.loop.soon(self.take)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.loop.remove(self.socket.fileno())
        self.socket.close()
        self.reader.close()
        self._forget()
        self._on_close(self)
