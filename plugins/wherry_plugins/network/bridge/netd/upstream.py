"""Questions that go to the servers outside: as they are, but for a number of our own, over a socket of their own.

So an answer must come from the server that was asked (the socket is connected), to a port and with a number that nobody else
knows, and repeat the question (RFC 5452). A server that is silent, unreachable or refuses is followed by the next one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from wherry.kit.loop import IN, OUT
from wherry_plugins.network.bridge.netd.shares import Shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.kit.loop import Loop, Timer

    Reply = Callable[[bytes], None]

PORT = 53
PATIENCE = 2.0  # seconds a server has by UDP
PATIENCE_TCP = 5.0
#: Questions on their way, of all and of one sandbox (``Shares``): more than that are answered with SERVFAIL.
MOST, MOST_OF_ONE, ALWAYS = 1024, 128, 16
_SERVERS = 3  # as resolv.conf(5) has it
_SERVFAIL = 2
_NEXT = frozenset({1, 2, 4, 5})  # FORMERR, SERVFAIL, NOTIMP, REFUSED: another server may do better
_LARGEST = 65535


class Upstream:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.asking = Shares(MOST, MOST_OF_ONE, ALWAYS)
        self.questions: set[Question] = set()

    def ask(
        self, data: bytes, end: int, servers: tuple[str, ...], sandbox: str, tcp: bool, reply: Callable[[bytes], None]
    ) -> None:
        """reply is called once. end: where the question in data ends."""
        if not self.asking.take(sandbox):
            reply(_failure(data, end))
            return
        Question(self, data, end, servers[:_SERVERS], sandbox, tcp, reply).next()

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        for question in tuple(self.questions):
            question.drop()


class Question:
    """One on its way."""

    def __init__(
        self, upstream: Upstream, data: bytes, end: int, servers: tuple[str, ...], sandbox: str, tcp: bool, reply: Reply
    ) -> None:
        self._upstream = upstream
        self._loop = upstream.loop
        self._data = data
        self._end = end
        self._servers = list(servers)
        self._sandbox = sandbox
        self._tcp = tcp
        self._reply = reply
        self._last = b""  # what a server said that would not answer
        self._socket: socket.socket | None = None
        self._number = b""
        self._out = b""
        self._in = bytearray()
        self._timer: Timer | None = None
        upstream.questions.add(self)

    def next(self) -> None:
        """Goes to the next server; without one the answer is what the last one said."""
        self._close()
        while self._servers:
            server = self._servers.pop(0)
            self._number = os.urandom(2)
            message = self._number + self._data[2:]
            try:
                self._send(server, message)
            except OSError:
                self._close()
                continue
            self._timer = self._loop.later(PATIENCE_TCP if self._tcp else PATIENCE, self.next)
            return
        self._done(self._last or _failure(self._data, self._end))

    def _send(self, server: str, message: bytes) -> None:
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        (family, _type, _protocol, _name, address), *_others = socket.getaddrinfo(
            server, PORT, type=kind, flags=socket.AI_NUMERICHOST
        )
        self._socket = sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code), server)
        if self._tcp:
            self._in.clear()
            self._out = struct.pack("!H", len(message)) + message
            self._loop.add(sock.fileno(), OUT, lambda _events: self._stream())
        else:
            sock.send(message)
            self._loop.add(sock.fileno(), IN, lambda _events: self._datagrams())

    def _datagrams(self) -> None:
        while self._socket is not None:
            try:
                answer = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there
                self.next()
                return
            if self._fits(answer):
                self._judge(answer)

    def _stream(self) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            if self._out:
                self._out = self._out[sock.send(self._out) :]
                if not self._out:
                    self._loop.modify(sock.fileno(), IN)
                return
            piece = sock.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._in += piece
        if len(self._in) >= 2 and len(self._in) - 2 >= (length := struct.unpack_from("!H", self._in)[0]):
            answer = bytes(self._in[2 : 2 + length])
            if self._fits(answer):
                self._judge(answer)
                return
            piece = b""
        if not piece:
            self.next()

    def _fits(self, answer: bytes) -> bool:
        """Whether it is an answer to this question."""
        end = self._end
        return (
            answer[:2] == self._number
            and len(answer) >= end
            and bool(answer[2] & 0x80)
            and answer[4:6] == b"\0\1"
            and answer[12:end].lower() == self._data[12:end].lower()
        )

    def _judge(self, answer: bytes) -> None:
        answer = self._data[:2] + answer[2:]
        if answer[3] & 0x0F in _NEXT and self._servers:
            self._last = answer
            self.next()
        else:
            self._done(answer)

    def _done(self, answer: bytes) -> None:
        self.drop()
        self._reply(answer)

    def drop(self) -> None:
        self._close()
        if self in self._upstream.questions:
            self._upstream.questions.remove(self)
            self._upstream.asking.give(self._sandbox)

    def _close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.remove(sock.fileno())
            sock.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _failure(data: bytes, end: int) -> bytes:
    flags = 0x8080 | (data[2] & 0x79) << 8 | _SERVFAIL
    return data[:2] + flags.to_bytes(2, "big") + b"\0\1" + bytes(6) + data[12:end]
