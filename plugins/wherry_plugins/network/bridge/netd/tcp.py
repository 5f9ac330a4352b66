"""Published TCP ports, for connections that the packet filter does not translate: those from the host to its loopback.

One that is accepted is connected to the container's address; then each side's bytes go to the other as fast as that takes them,
an end of file likewise, and an error resets both. A side that takes nothing stops the other from being read.

Bytes go by splice(2), from socket to pipe to socket, and are never copied to here. A pipe is lent to a direction for as long as there
is something in it, so that connections that are quiet, most of all, have none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from wherry.kit.loop import ERR, HUP, IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.kit.loop import Loop, Timer
    from wherry_plugins.network.bridge.netd.shares import Shares

    Target = Callable[[int], tuple[str, int]]

#: Connections of all sandboxes, and of one (``Shares``): more wait in the kernel's queue until others end.
MOST, MOST_OF_ONE, ALWAYS = 4096, 2048, 64
_PATIENCE = 10.0  # seconds that a container has to accept
_PIECE = 1 << 18  # the size of a pipe, too
_ROUND = 4  # pieces a turn: then other connections have theirs
_BACKLOG = 512
_KEPT = 16  # empty pipes
_RESET = struct.pack("ii", 1, 0)  # struct linger: close(2) sends RST


class TcpPort:
    """Takes over a bound socket. target: (address, port) of the container for an IP version."""

    def __init__(
        self, loop: Loop, fd: int, target: Target, refused: Callable[[str], bool], shares: Shares, sandbox: str
    ) -> None:
        """refused: whether somebody with that address may not come in. shares: of connections, of all ports."""
        self.loop = loop
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self.socket.listen(_BACKLOG)
        self.target = target
        self._refused = refused
        self.shares = shares
        self.sandbox = sandbox
        self.connections: set[TcpConnection] = set()
        self._waiting = False
        self.closed = False
        loop.add(self.socket.fileno(), IN, self._accept)

    def _accept(self, _events: int) -> None:
        for _turn in range(_ROUND):
            if self.full():
                self._pause()
                return
            try:
                sock, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._pause()
                return
            sock.setblocking(False)
            if self._refused(address[0]):
                _reset(sock)
                continue
            TcpConnection(self, sock)

    def full(self) -> bool:
        return not self.shares.free(self.sandbox)

    def _pause(self) -> None:
        """Accepts nothing until there is room again."""
        if not self._waiting:
            self._waiting = True
            self.loop.modify(self.socket.fileno(), 0)
            self.loop.later(0.05, self._resume)

    def _resume(self) -> None:
        self._waiting = False
        if not self.closed:
            self.loop.modify(self.socket.fileno(), IN)

    def close(self) -> None:
        self.closed = True
        self.loop.remove(self.socket.fileno())
        self.socket.close()
        for connection in tuple(self.connections):
            connection.fail()


class PipePool:
    """Empty pipes, as (read end, write end); a few are kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        if self._kept:
            return self._kept.pop()
        pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _PIECE)
        except OSError:  # a user may have so many pages only: smaller ones do
            pass
        return pipe

    def give(self, pipe: tuple[int, int], *, empty: bool) -> None:
        if empty and len(self._kept) < _KEPT:
            self._kept.append(pipe)
            return
        for fd in pipe:
            os.close(fd)


PIPES = PipePool()


class StreamEnd:
    """One end: what it still has to take, in its pipe; whether it has nothing more to say, whether it was told the other's end."""

    __slots__ = ("ended", "pending", "pipe", "socket", "told", "watched")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pending = 0
        self.pipe: tuple[int, int] | None = None
        self.ended = False
        self.told = False
        self.watched = 0

    def take(self, source: StreamEnd) -> None:
        """What the other side has to say, until it or this one has enough for a turn."""
        for _turn in range(_ROUND):
            if self.pending or source.ended:
                return
            if self.pipe is None:
                self.pipe = PIPES.take()
            try:
                self.pending = os.splice(source.socket.fileno(), self.pipe[1], _PIECE, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                self._done()
                return
            source.ended = not self.pending
            self.flush()

    def flush(self) -> None:
        """As much of what is pending as the socket takes."""
        while self.pending and self.pipe is not None:
            try:
                flags = os.SPLICE_F_NONBLOCK
                self.pending -= os.splice(self.pipe[0], self.socket.fileno(), self.pending, flags=flags)
            except BlockingIOError:
                return
        self._done()

    def _done(self) -> None:
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            PIPES.give(pipe, empty=not self.pending)

    def close(self) -> None:
        self._done()
        self.socket.close()


class TcpConnection:
    """A client's and the one to the container that belongs to it."""

    def __init__(self, port: TcpPort, client: socket.socket) -> None:
        self._port = port
        self._loop = port.loop
        self._client = StreamEnd(client)
        self._server: StreamEnd | None = None
        self._closed = False
        self._timer: Timer | None = None
        port.connections.add(self)
        port.shares.take(port.sandbox)
        try:
            self._connect(6 if client.family == socket.AF_INET6 else 4)
        except OSError:
            self.fail()
            return
        self._timer = self._loop.later(_PATIENCE, self.fail)

    def _connect(self, version: int) -> None:
        address, number = self._port.target(version)
        if not address:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._server = StreamEnd(sock)
        code = sock.connect_ex((address, number))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        for side in (self._client.socket, sock):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add(sock.fileno(), OUT, self._connected)

    def _connected(self, _events: int) -> None:
        server = self._server
        if server is None:
            return
        if server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.fail()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove(server.socket.fileno())
        self._watch(self._client, server)
        self._watch(server, self._client)

    def _event(self, events: int, side: StreamEnd, other: StreamEnd) -> None:
        """Something happened on a side."""
        if self._closed:
            return
        try:
            if events & ERR or (events & HUP and side.ended):
                self.fail()
                return
            if events & OUT and side.pending:
                side.flush()
            if events & (IN | HUP):
                other.take(side)
            self._tell_end(side, other)
            self._tell_end(other, side)
        except OSError:
            self.fail()
            return
        if side.told and other.told and side.ended and other.ended:
            self._close()
        else:
            self._watch(side, other)
            self._watch(other, side)

    @staticmethod
    def _tell_end(source: StreamEnd, sink: StreamEnd) -> None:
        if source.ended and not sink.pending and not sink.told:
            sink.told = True
            sink.socket.shutdown(socket.SHUT_WR)

    def _watch(self, side: StreamEnd, other: StreamEnd) -> None:
        """IN while the other side takes what this one says, OUT while this one has something to take.

        With neither it is not watched at all, since a hang-up would be told again and again.
        """
        wanted = (IN if not side.ended and not other.pending else 0) | (OUT if side.pending else 0)
        before, side.watched = side.watched, wanted
        fd = side.socket.fileno()
        if not wanted:
            self._loop.remove(fd)
        elif not before:
            self._loop.add(fd, wanted, lambda events: self._event(events, side, other))
        elif wanted != before:
            self._loop.modify(fd, wanted)

    def fail(self) -> None:
        """Ends both sides by a reset."""
        for side in (self._client, self._server):
            if side is not None:
                try:
                    side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                except OSError:
                    pass
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for side in (self._client, self._server):
            if side is not None:
                self._loop.remove(side.socket.fileno())
                side.close()
        if self._timer is not None:
            self._timer.cancel()
        self._port.connections.discard(self)
        self._port.shares.give(self._port.sandbox)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
