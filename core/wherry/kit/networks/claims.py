"""Published ports, claimed by sockets bound in the host's network namespace before anything starts (``wherry.linux.ports``).

A claim is what the kernel itself refuses to give twice, to us or to anybody else on the machine.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable

import attrs

from wherry.api import Denied, InUse, Invalid, Port
from wherry.kit.networks.records import Key
from wherry.linux import ports as kernel


class PortClaims:
    """Ports kept for attachments of programs that bind them themselves, or of rules that no socket stands behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Key, list[kernel.PortClaim]] = {}

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


def claim(ports: Iterable[Port], *, backlog: int = 0) -> dict[Port, kernel.PortClaim]:
    """All of them, or none: each port as it is granted, of a range the first free one, and what holds it.

    backlog as in ``wherry.linux.ports.claim``. InUse names the first one that is taken; Invalid for what is no port, or an address
    that is not the host's; Denied for one that this user may not have.
    """
    made: dict[Port, kernel.PortClaim] = {}
    try:
        for port in ports:
            granted, one = _claim(port, backlog)
            made[granted] = one
    except BaseException:
        for one in made.values():
            one.close()
        raise
    return made


def _claim(wish: Port, backlog: int) -> tuple[Port, kernel.PortClaim]:
    _check(wish)
    last = wish.host_port_last or wish.host_port
    port = attrs.evolve(wish, host_port_last=0)
    while True:
        try:
            made = kernel.claim(port.protocol, port.host_ip, port.host_port, backlog=backlog)
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
