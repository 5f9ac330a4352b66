"""The sockets that a container's resolver answers on: which one a question came by says who asks."""

from __future__ import annotations

import socket
import struct

from wherry.kit.loop import ERR, HUP, IN, OUT
from wherry_plugins.network.bridge.netd.dns import MAX_QUERY, question

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wherry.kit.loop import Loop
    from wherry_plugins.network.bridge.netd.dns import Answers

#: Connections of one container; how long one may be silent, in seconds; questions of one that are on their way.
MOST_STREAMS = 32
_IDLE = 20.0
_PIPELINE = 16
_UNSENT = 1 << 17
_ROUND = 16  # datagrams a turn: then the others have theirs


class Resolver:
    """Takes over a bound socket of a container's network namespace, UDP or TCP."""

    def __init__(self, loop: Loop, answers: Answers, sandbox: str, fd: int) -> None:
        self.loop = loop
        self.answers = answers
        self.sandbox = sandbox
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self.streams: set[Stream] = set()
        self.closed = False
        by_stream = self.socket.type == socket.SOCK_STREAM
        if by_stream:
            self.socket.listen(16)
        loop.add(self.socket.fileno(), IN, self._accept if by_stream else self._datagrams)

    def _datagrams(self, _events: int) -> None:
        for _turn in range(_ROUND):
            if self.closed:
                return
            try:
                data, address = self.socket.recvfrom(MAX_QUERY + 1)
            except OSError:
                return
            self.answers.ask(data, self.sandbox, False, lambda answer, to=address: self._send(answer, to))  # type: ignore[misc]

    def _send(self, answer: bytes, address: tuple[str, int]) -> None:
        if not self.closed:
            try:
                self.socket.sendto(answer, address)
            except OSError:
                pass  # no room, or nobody there any more: as on any network, the asker asks again

    def _accept(self, _events: int) -> None:
        try:
            sock, _address = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # what else it may be, as EMFILE, lasts: the loop lets this handler rest
        if len(self.streams) >= MOST_STREAMS:
            sock.close()
        else:
            sock.setblocking(False)
            self.streams.add(Stream(self, sock))

    def close(self) -> None:
        self.closed = True
        self.loop.remove(self.socket.fileno())
        self.socket.close()
        for stream in tuple(self.streams):
            stream.close()


class Stream:
    """A connection: each message with its length before it (RFC 7766), answers as they come."""

    def __init__(self, resolver: Resolver, sock: socket.socket) -> None:
        self._resolver = resolver
        self._loop = resolver.loop
        self._socket = sock
        self._in = bytearray()
        self._out = bytearray()
        self._asking = 0
        self._ended = False
        self._closed = False
        self._watched = IN
        self._loop.add(sock.fileno(), IN, self._event)
        self._timer = self._loop.later(_IDLE, self.close)

    def _event(self, events: int) -> None:
        if events & (HUP | ERR):
            self.close()
            return
        try:
            if events & OUT:
                del self._out[: self._socket.send(self._out)]
            elif not self._ended:
                piece = self._socket.recv(1 << 14)
                self._ended = not piece
                self._in += piece
                self._timer.cancel()
                self._timer = self._loop.later(_IDLE, self.close)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._go_on()

    def _go_on(self) -> None:
        """Asks what has arrived whole, as far as there is room for answers."""
        while not self._closed and self._asking < _PIPELINE and len(self._out) < _UNSENT and len(self._in) >= 2:
            (length,) = struct.unpack_from("!H", self._in)
            if length > MAX_QUERY:
                self.close()
                return
            if len(self._in) < 2 + length:
                break
            data = bytes(self._in[2 : 2 + length])
            del self._in[: 2 + length]
            self._asking += 1
            if not question(data):
                self.close()
                return
            self._resolver.answers.ask(data, self._resolver.sandbox, True, self._answer)
        self._watch()

    def _answer(self, answer: bytes) -> None:
        if self._closed:
            return
        self._asking -= 1
        self._out += struct.pack("!H", len(answer)) + answer
        self._loop.soon(self._go_on)

    def _watch(self) -> None:
        if self._closed:
            return
        if self._ended and not self._out and not self._asking:
            self.close()
            return
        full = self._ended or self._asking >= _PIPELINE or len(self._out) >= _UNSENT
        wanted = (0 if full else IN) | (OUT if self._out else 0)
        if wanted != self._watched:
            self._watched = wanted
            self._loop.modify(self._socket.fileno(), wanted)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            self._resolver.streams.discard(self)
