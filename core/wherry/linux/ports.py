"""Ports of the host, claimed before whoever will answer on them starts: bind(2), ip(7), socket(7).

A claim is a bound socket that nobody else's bind gets past. It is handed on, and listens already, or ``share`` lets a program bind
beside it: SO_REUSEADDR on both, which the kernel accepts for as long as neither listens.
"""

from __future__ import annotations

import errno
import socket
import threading

_TRIES = 64
_lock = threading.Lock()


class PortClaim:
    """A port and its sockets, one a family. protocol and number are the port's."""

    __slots__ = ("number", "protocol", "sockets")

    def __init__(self, protocol: str, number: int, sockets: list[socket.socket]) -> None:
        self.protocol = protocol
        self.number = number
        self.sockets = sockets

    def share(self) -> None:
        """From here on a socket with SO_REUSEADDR may be bound to the same port."""
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets = []


def claim(protocol: str, address: str, number: int, *, backlog: int = 0) -> PortClaim:
    """Claims a port; protocol is "tcp" or "udp", address "" is every address of both families, number 0 lets one be chosen.
    backlog: that many connections may wait (listen(2)); 0: sockets of tcp do not listen.

    OSError: EADDRINUSE, EADDRNOTAVAIL for an address that is not the host's, EACCES for a port below
    net.ipv4.ip_unprivileged_port_start; ValueError for what is no address.
    """
    families = _families(address)
    for _ in range(_TRIES):
        sockets: list[socket.socket] = []
        chosen = number
        try:
            for family, host in families:
                try:
                    sock = _bind(protocol, family, host, chosen, backlog)
                except OSError as error:
                    if not address and family == socket.AF_INET6 and error.errno in _NO_IPV6:
                        continue
                    raise
                sockets.append(sock)
                chosen = sock.getsockname()[1]
        except OSError as error:
            for sock in sockets:
                sock.close()
            if number == 0 and error.errno == errno.EADDRINUSE:  # free in one family, taken in the other
                continue
            raise
        return PortClaim(protocol, chosen, sockets)
    raise OSError(errno.EADDRINUSE, "no free port was found")


_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _families(address: str) -> list[tuple[socket.AddressFamily, str]]:
    if not address:
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104 - what "every address" means
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except OSError:
        raise ValueError(f'"{address}" is no IP address') from None
    return [(family, address)]


def _bind(protocol: str, family: socket.AddressFamily, host: str, number: int, backlog: int) -> socket.socket:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((host, number))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or protocol != "tcp":
                raise
            # Connections of whoever had the port last may be in TIME_WAIT: those a bind gets past with SO_REUSEADDR, and past no
            # listener and no claim. Without it again, the socket is a claim like any other.
            with _lock:  # two of these would get past each other
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((host, number))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if backlog and protocol == "tcp":
            with _lock:
                # Its connections have this from it, and would keep the port from the next claim while they last.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock
