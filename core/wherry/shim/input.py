"""What clients type, on its way into a container's stdin or pty."""

from __future__ import annotations

import errno
import os
import select
import stat

from wherry.linux.loop import IN, OUT
from wherry.shim import pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wherry.shim.logger import LoggedTask

_PIECE = 4096


class InputSource:
    """One client's descriptor."""

    __slots__ = ("fd", "polled", "spliced", "token")

    def __init__(self, token: str, fd: int) -> None:
        self.token = token
        self.fd, own = pipes.reopen(fd, os.O_RDONLY)
        self.spliced = own or stat.S_ISSOCK(os.fstat(self.fd).st_mode)
        self.polled = True


class Input:
    """The writing end of a container's stdin (a pipe), or its pty master; fd is non-blocking."""

    __slots__ = ("_ending", "_rest", "_stalled", "closed", "fd", "sources", "task")

    def __init__(self, task: LoggedTask, fd: int) -> None:
        self.task = task
        self.fd = os.dup(fd) if task.streams.terminal else fd  # a pty's output watches the same descriptor
        self.sources: dict[str, InputSource] = {}
        self.closed = False
        self._rest = b""
        self._stalled = False
        self._ending = False

    def add(self, token: str, fd: int) -> int:
        """Adds a client; answers the descriptor that now stands for it."""
        source = InputSource(token, fd)
        self.sources[token] = source
        self._ending = False
        self._watch(source)
        return source.fd

    def _watch(self, source: InputSource) -> None:
        if self._stalled or self.closed:
            return
        loop = self.task.logger.loop
        if source.polled:
            try:
                loop.add(source.fd, IN, lambda _events: self._move(source))
                return
            except PermissionError:  # a regular file, /dev/null: always ready
                source.polled = False
        loop.soon(lambda: self._move(source))

    def _move(self, source: InputSource) -> None:
        """One piece from a client to the container."""
        if self.closed or self._stalled or self.sources.get(source.token) is not source:
            return
        try:
            if source.spliced and not self.task.streams.terminal:
                count = pipes.splice(source.fd, self.fd, pipes.CHUNK)
            else:
                count = self._copy(source)
        except BlockingIOError:
            if not self._writable():
                self._stall()
            elif not source.polled:
                self.task.logger.loop.later(0.02, lambda: self._move(source))
            return
        except OSError as error:
            if source.spliced and pipes.unsupported(error):
                source.spliced = False
                self._move(source)
            elif error.errno == errno.EPIPE:
                self.close()
            else:
                self.remove(source.token)
            return
        if not count:
            self.remove(source.token, eof=True)
        elif not source.polled:
            self.task.logger.loop.soon(lambda: self._move(source))

    def _copy(self, source: InputSource) -> int:
        if not self._writable():
            raise BlockingIOError
        data = os.read(source.fd, _PIECE)
        if data:
            self._rest = data
            self._write()
        return len(data)

    def _write(self) -> None:
        try:
            self._rest = self._rest[os.write(self.fd, self._rest) :]
        except BlockingIOError:
            pass
        if self._rest:
            self._stall()

    def _writable(self) -> bool:
        if self._rest:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(0))

    def _stall(self) -> None:
        """The container reads nothing for now: no client is read until it does."""
        if self._stalled:
            return
        loop = self.task.logger.loop
        self._stalled = True
        for source in self.sources.values():
            loop.remove(source.fd)
        loop.add(self.fd, OUT, self._unstall)

    def _unstall(self, _events: int) -> None:
        self.task.logger.loop.remove(self.fd)
        self._stalled = False
        if self._rest:
            try:
                self._write()
            except OSError:
                self.close()
            if self._stalled or self.closed:
                return
        if not self.sources and self._ending:
            self.close()
            return
        for source in tuple(self.sources.values()):
            self._watch(source)

    def remove(self, token: str, *, eof: bool = False) -> None:
        """A client is at its end (eof) or gone; with the last one the container sees end of file, unless its stdin is held: at the
        end of one that was attached later by its own wish (see ``Streams``), otherwise by the task's."""
        source = self.sources.pop(token, None)
        if source is None:
            return
        self.task.logger.loop.remove(source.fd)
        self.task.gone(token, -1)
        held = token[0] == "h" if eof and token[:1] in ("a", "h") else self.task.streams.hold
        if not self.sources and not held:
            self._ending = True
            if not self._rest:
                self.close()

    def close(self) -> None:
        """End of file for the container; a pty stays open, as its output comes by the same descriptor."""
        if self.closed:
            return
        loop = self.task.logger.loop
        loop.remove(self.fd)
        for token, source in tuple(self.sources.items()):
            loop.remove(source.fd)
            self.task.gone(token, -1)
        self.sources.clear()
        self.closed = True
        if self.task.streams.terminal:
            os.close(self.fd)
        else:
            self.task.stdin_closed()
