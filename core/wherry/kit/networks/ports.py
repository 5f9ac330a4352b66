"""Published ports: sockets bound in the host's network namespace before anything starts (bind(2), ip(7), socket(7)).

A claim is a bound socket that nobody else's bind gets past: what the kernel itself refuses to give twice, to us or to anybody else on
the machine. It is handed on, and listens already, or ``share`` lets a program bind beside it: SO_REUSEADDR on both, which the kernel
accepts for as long as neither listens.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterable

import attrs

from wherry.api import Denied, InUse, Invalid, Port
from wherry.kit.networks.records import Key

__all__ = ["PortClaim", "PortClaims", "bind", "claim"]

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


def bind(protocol: str, address: str, number: int, *, backlog: int = 0) -> PortClaim:
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
                    sock = _bound(protocol, family, host, chosen, backlog)
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


def _bound(protocol: str, family: socket.AddressFamily, host: str, number: int, backlog: int) -> socket.socket:
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


class PortClaims:
    """Ports kept for attachments of programs that bind them themselves, or of rules that no socket stands behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Key, list[PortClaim]] = {}

    def claim(self, key: Key, ports: Iterable[Port]) -> tuple[Port, ...]:
        """All of them, or none: the ports with every host_port chosen. InUse names a taken one; Invalid, Denied."""
        made = claim(ports)
        with self._lock:
            self._held.setdefault(key, []).extend(made.values())
        return tuple(made)

    def share(self, key: Key) -> None:
        """Lets a program with SO_REUSEADDR bind them too."""
        with self._lock:
            for one in self._held.get(key, ()):
                one.share()

    def release(self, key: Key, protocol: str = "") -> None:
        """Lets go of the ports of a protocol, or of all."""
        with self._lock:
            held = self._held.pop(key, [])
            stay = [one for one in held if protocol and one.protocol != protocol]
            if stay:
                self._held[key] = stay
        for one in held:
            if one not in stay:
                one.close()

    def close(self) -> None:
        for key in list(self._held):
            self.release(key)


def claim(ports: Iterable[Port], *, backlog: int = 0) -> dict[Port, PortClaim]:
    """All of them, or none: each port as it is granted, of a range the first free one, and what holds it.

    backlog as in ``bind``. InUse names the first one that is taken; Invalid for what is no port, or an address
    that is not the host's; Denied for one that this user may not have.
    """
    made: dict[Port, PortClaim] = {}
    try:
        for port in ports:
            granted, one = _claim(port, backlog)
            made[granted] = one
    except BaseException:
        for one in made.values():
            one.close()
        raise
    return made


def _claim(wish: Port, backlog: int) -> tuple[Port, PortClaim]:
    _check(wish)
    last = wish.host_port_last or wish.host_port
    port = attrs.evolve(wish, host_port_last=0)
    while True:
        try:
            made = bind(port.protocol, port.host_ip, port.host_port, backlog=backlog)
        except ValueError:
            raise Invalid(f'address "{port.host_ip}"', "is not an IP address") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port.host_port == last:
                raise _told(error, port, wish) from None
            port = attrs.evolve(port, host_port=port.host_port + 1)
        else:
            return attrs.evolve(port, host_port=made.number), made


def _check(port: Port) -> None:
    if not (0 < port.container_port < 1 << 16 and 0 <= port.host_port < 1 << 16):
        raise Invalid(_name(port), "a port is a number from 1 to 65535")
    if port.host_port_last and not 0 < port.host_port <= port.host_port_last < 1 << 16:
        raise Invalid(_name(port), f"no range of ports ends at {port.host_port_last}")
    if port.protocol not in ("tcp", "udp"):
        raise Invalid(_name(port), f'the protocol "{port.protocol}" can\'t be published', "use tcp or udp")


def _told(error: OSError, port: Port, wish: Port) -> Exception:
    if error.errno == errno.EADDRINUSE and wish.host_port_last:
        return InUse(_name(wish), f"and all others up to {wish.host_port_last} are taken on the host")
    if error.errno == errno.EADDRINUSE:
        return InUse(_name(port), "is taken on the host", "choose another one, or leave the host's port out")
    if error.errno == errno.EADDRNOTAVAIL:
        return Invalid(_name(port), f'the host has no address "{port.host_ip}"', "see: ip address")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(
            _name(port), "this user may not listen there", "use a port from net.ipv4.ip_unprivileged_port_start on"
        )
    return OSError(error.errno, error.strerror or os.strerror(error.errno or 0), _name(port))


def _name(port: Port) -> str:
    address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    return f'port "{address}{":" if address else ""}{port.host_port}/{port.protocol}"'
