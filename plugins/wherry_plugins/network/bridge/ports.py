"""Published ports, claimed by sockets bound in the host's network namespace before anything starts.

A claim is what the kernel itself refuses to give twice, to us or to anybody else on the machine. Its sockets are those that
netd answers on later, so that there is no moment in which the port is free.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable

from attrs import define, evolve, field

from wherry.api import Denied, InUse, Invalid, Port

_ATTEMPTS = 20
_BACKLOG = 512
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@define
class Claims:
    """The ports of one endpoint with the sockets that hold them, by the port as it was granted."""

    sockets: dict[Port, tuple[socket.socket, ...]] = field(factory=dict)

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(self.sockets)

    def descriptors(self) -> dict[Port, tuple[int, ...]]:
        return {port: tuple(one.fileno() for one in sockets) for port, sockets in self.sockets.items()}

    def close(self) -> None:
        for sockets in self.sockets.values():
            for one in sockets:
                one.close()
        self.sockets.clear()


def claim(ports: Iterable[Port]) -> Claims:
    """All of them or none. InUse names the first one that is taken, Invalid an address that is not the host's, Denied a port
    that this user may not have."""
    claims = Claims()
    try:
        for port in ports:
            granted, sockets = _claim(port)
            claims.sockets[granted] = sockets
    except BaseException:
        claims.close()
        raise
    return claims


def _claim(port: Port) -> tuple[Port, tuple[socket.socket, ...]]:
    _check(port)
    if port.host_port_last:
        for number in range(port.host_port, port.host_port_last + 1):
            try:
                return _claim(evolve(port, host_port=number, host_port_last=0))
            except InUse:
                continue
        raise InUse(_name(port), f"and all others up to {port.host_port_last} are taken on the host")
    for last in [False] * _ATTEMPTS + [True]:
        sockets: list[socket.socket] = []
        number = port.host_port
        try:
            for family, address in _addresses(port.host_ip):
                one = _bind(family, address, number, port)
                if one is None:
                    continue
                sockets.append(one)
                number = one.getsockname()[1]
            if not sockets:
                raise Invalid(_name(port), "the host has no address of any family")
            return evolve(port, host_port=number), tuple(sockets)
        except InUse:
            for one in sockets:
                one.close()
            # A free port of one family may be taken in the other: only a port that the caller left open is tried again.
            if port.host_port or last:
                raise
        except BaseException:
            for one in sockets:
                one.close()
            raise
    raise InUse(_name(port), "no free port was found")


def _check(port: Port) -> None:
    if not (0 < port.container_port < 1 << 16 and 0 <= port.host_port < 1 << 16):
        raise Invalid(_name(port), "a port is a number from 1 to 65535")
    if port.host_port_last and not 0 < port.host_port <= port.host_port_last < 1 << 16:
        raise Invalid(_name(port), f"no range of ports ends at {port.host_port_last}")
    if port.protocol not in _KINDS:
        raise Invalid(_name(port), f'the protocol "{port.protocol}" can\'t be published', "use tcp or udp")


def _addresses(host_ip: str) -> tuple[tuple[socket.AddressFamily, str], ...]:
    if not host_ip:
        return (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")  # noqa: S104 what "every address" means
    try:
        version = ipaddress.ip_address(host_ip).version
    except ValueError:
        raise Invalid(f'address "{host_ip}"', "is not an IP address") from None
    return ((socket.AF_INET6 if version == 6 else socket.AF_INET, host_ip),)


def _bind(family: socket.AddressFamily, address: str, number: int, port: Port) -> socket.socket | None:
    """None where the host knows nothing of that family and the caller did not ask for it by address."""
    try:
        one = socket.socket(family, _KINDS[port.protocol] | socket.SOCK_CLOEXEC)
    except OSError as error:
        if not port.host_ip and error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            return None
        raise
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol == "tcp":
            # Connections in TIME-WAIT do not hold it up; a listener does. On udp it would let two sockets share the port.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, number))
        if port.protocol == "tcp":
            one.listen(_BACKLOG)
    except OSError as error:
        one.close()
        if error.errno == errno.EADDRNOTAVAIL and not port.host_ip:
            return None  # IPv6 is switched off
        raise _told(error, evolve(port, host_port=number), address) from None
    except BaseException:
        one.close()
        raise
    return one


def _told(error: OSError, port: Port, address: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return InUse(_name(port), "is taken on the host", "choose another one, or leave the host's port out")
    if error.errno == errno.EADDRNOTAVAIL:
        return Invalid(_name(port), f'the host has no address "{address}"', "see: ip address")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Denied(
            _name(port), "this user may not listen there", "use a port from net.ipv4.ip_unprivileged_port_start on"
        )
    return OSError(error.errno, error.strerror or os.strerror(error.errno or 0), _name(port))


def _name(port: Port) -> str:
    address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    return f'port "{address}{":" if address else ""}{port.host_port}/{port.protocol}"'
