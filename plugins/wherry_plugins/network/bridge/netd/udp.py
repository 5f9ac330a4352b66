"""Published UDP ports, for what the packet filter does not translate: a session for each sender, ended when both are silent."""

from __future__ import annotations

import socket
import struct
import time

from wherry.kit.loop import IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from wherry.kit.loop import Loop
    from wherry_plugins.network.bridge.netd.shares import Shares

    Target = Callable[[int], tuple[str, int]]
    Key = tuple[Any, bytes]

#: Senders of all sandboxes, and of one (``Shares``); with one more, that of its port that has been silent for longest is forgotten.
MOST, MOST_OF_ONE, ALWAYS = 4096, 1024, 64
SILENCE = 60.0  # seconds until a session ends, as the kernel's own connection tracking has it, and a look at them all
_LARGEST = 65535
_ROUND = 32
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50


class UdpPort:
    """Takes over a bound socket. target: (address, port) of the container for an IP version."""

    def __init__(
        self, loop: Loop, fd: int, target: Target, refused: Callable[[str], bool], shares: Shares, sandbox: str
    ) -> None:
        """refused: whether somebody with that address may not come in. shares: of senders, of all ports."""
        self.loop = loop
        self.socket = sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self.target = target
        self._refused = refused
        self.shares = shares
        self.sandbox = sandbox
        self.sessions: dict[Key, Session] = {}  # the one that was used last is last
        self.closed = False
        self._version = 6 if sock.family == socket.AF_INET6 else 4
        # an answer comes from the address that was asked, which a socket of all addresses has to be told
        if self._version == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        loop.add(sock.fileno(), IN, self._datagrams)
        self._timer = loop.later(SILENCE / 2, self._sweep)

    def _datagrams(self, _events: int) -> None:
        for _turn in range(_ROUND):
            try:
                data, ancillary, _flags, address = self.socket.recvmsg(_LARGEST, socket.CMSG_SPACE(64))
            except OSError:  # nothing more; or an error of a datagram that was sent before
                return
            asked = next((payload for _level, _type, payload in ancillary), b"")
            key = (address, asked)
            session = self.sessions.pop(key, None)
            if session is None:
                if self._refused(address[0]):
                    continue
                if not self.shares.free(self.sandbox):
                    if not self.sessions:
                        continue
                    next(iter(self.sessions.values())).close()
                try:
                    session = Session(self, key)
                except OSError:
                    continue
                self.shares.take(self.sandbox)
            self.sessions[key] = session
            session.take(data)

    def answer(self, key: Key, data: bytes) -> None:
        address, asked = key
        if self._version == 4:
            # struct in_pktinfo: index, the local address, the header's; the source is the second
            info = struct.pack("=i4s4s", 0, asked[8:12], bytes(4))
            ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
        else:
            ancillary = [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, asked)]
        try:
            self.socket.sendmsg([data], ancillary if asked else [], 0, address)
        except OSError:
            pass  # no room, or nobody there: as on any network, it is lost

    def _sweep(self) -> None:
        if self.closed:
            return
        before = time.monotonic() - SILENCE
        for session in tuple(self.sessions.values()):
            if session.used < before:
                session.close()
        self._timer = self.loop.later(SILENCE / 2, self._sweep)

    def close(self) -> None:
        self.closed = True
        self._timer.cancel()
        self.loop.remove(self.socket.fileno())
        self.socket.close()
        for session in tuple(self.sessions.values()):
            session.close()


class Session:
    """One sender's: a socket that is connected to the container, so that its answers come back to here."""

    __slots__ = ("_key", "_port", "_socket", "used")

    def __init__(self, port: UdpPort, key: Key) -> None:
        address, number = port.target(6 if len(key[0]) == 4 else 4)
        if not address:
            raise OSError(113, "no address")
        self._port = port
        self._key = key
        self.used = time.monotonic()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect((address, number))
        except OSError:
            self._socket.close()
            raise
        port.loop.add(self._socket.fileno(), IN, self._answers)

    def take(self, data: bytes) -> None:
        self.used = time.monotonic()
        try:
            self._socket.send(data)
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _answers(self, _events: int) -> None:
        for _turn in range(_ROUND):
            try:
                data = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there: the sender's next datagram begins a new session
                self.close()
                return
            self.used = time.monotonic()
            self._port.answer(self._key, data)

    def close(self) -> None:
        if self._port.sessions.get(self._key) is self:
            del self._port.sessions[self._key]
        if self._socket.fileno() >= 0:
            self._port.shares.give(self._port.sandbox)
            self._port.loop.remove(self._socket.fileno())
            self._socket.close()
