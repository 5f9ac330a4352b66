"""Whoever gets a copy of a container's output as it comes: a client's descriptors, a collector."""

from __future__ import annotations

import os
import select
import socket
import stat

from wherry.linux import path
from wherry.shim import pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.linux.loop import Loop

OUT = select.EPOLLOUT
_PIECE = 4096  # what a pipe that polls writable takes at once


class Reader:
    """A copy waits in ``pipe`` until the reader has taken it; one batch at a time, so the kernel's count of what is left is all
    the state there is. drop: a batch that finds the last one still waiting is lost, instead of holding the container up.
    gone is called when the other end was closed, even if there is nothing to write: a silent container's clients come and go."""

    __slots__ = (
        "_blocking", "_gone", "_idle", "_loop", "_socket", "_spliced", "_waiting", "broken", "drop", "fd", "pipe", "token",
    )  # fmt: skip

    def __init__(
        self, loop: Loop, token: str, fd: int, pipe: int, drop: bool, gone: Callable[[Reader], None] | None = None
    ) -> None:
        self.token = token
        self.pipe = pipe
        self.drop = drop
        self.broken = False
        self._loop = loop
        self._waiting = False
        self.fd, nonblocking = pipes.reopen(fd, os.O_WRONLY)
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(self.fd).st_mode):
            self._socket = socket.socket(fileno=os.dup(self.fd))
        self._blocking = not nonblocking
        self._spliced = nonblocking
        self._gone = None if self._named() else gone
        self._idle = False
        self._watch()

    def _named(self) -> bool:
        """Whether it is a FIFO, to which another reader may come."""
        return stat.S_ISFIFO(os.fstat(self.fd).st_mode) and path.filesystem(self.fd) != path.PIPEFS_MAGIC

    def _watch(self) -> None:
        """Errors and hang-ups only, which epoll(7) always reports."""
        gone = self._gone
        if gone is None:
            return
        try:
            self._loop.add(self.fd, 0, lambda _events: gone(self))
        except PermissionError:  # a file is never gone
            self._gone = None
            return
        self._idle = True

    def _unwatch(self) -> None:
        if self._idle:
            self._idle = False
            self._loop.remove(self.fd)

    def flush(self, scratch: int, null: int) -> bool:
        """Passes on what waits. False when the reader takes no more for now."""
        while count := pipes.pending(self.pipe):
            try:
                if self._spliced:
                    pipes.splice(self.pipe, self.fd, count)
                else:
                    self._copy(count, scratch, null)
            except BlockingIOError:
                return False
            except OSError as error:
                if self._spliced and pipes.unsupported(error):
                    self._spliced = False
                    continue
                self.broken = True
                pipes.discard(self.pipe, count, null)
        return True

    def _copy(self, count: int, scratch: int, null: int) -> None:
        pipes.tee(self.pipe, scratch, count)
        data = os.read(scratch, pipes.LARGEST)
        if self._socket is not None:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        elif self._blocking:
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
            sent = os.write(self.fd, data[:_PIECE])
        else:
            sent = os.write(self.fd, data)
        pipes.discard(self.pipe, sent, null)

    def wait(self, callback: Callable[[], None]) -> None:
        """Calls back once it can take more."""
        if self._waiting:
            return

        def ready(_events: int) -> None:
            self.unwait()
            self._watch()
            callback()

        self._unwatch()
        try:
            self._loop.add(self.fd, OUT, ready)
        except PermissionError:  # what can't be polled: asked again
            self._loop.later(0.05, callback)
            return
        self._waiting = True

    def unwait(self) -> None:
        if self._waiting:
            self._waiting = False
            self._loop.remove(self.fd)

    def close(self) -> None:
        """``fd`` and ``pipe`` stay open: they belong to the stream's record."""
        self.unwait()
        self._unwatch()
        if self._socket is not None:
            self._socket.close()
