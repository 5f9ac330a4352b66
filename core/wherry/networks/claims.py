"""The host's ports that are kept for attachments of programs that bind them themselves, or of rules that no socket stands behind."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable

import attrs

from wherry.api import Denied, InUse, Invalid, Port
from wherry.linux import ports as kernel
from wherry.networks.records import Key


class PortClaims:
    """The host's ports that are kept for attachments, each by bound sockets (``wherry.linux.ports``)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Key, list[kernel.Claim]] = {}

    def claim(self, key: Key, ports: Iterable[Port]) -> tuple[Port, ...]:
        """All of them, or none: the ports with every host_port chosen. InUse names a taken one; Invalid, Denied."""
        made: list[kernel.Claim] = []
        granted = []
        try:
            for port in ports:
                made.append(_claim(port))
                granted.append(attrs.evolve(port, host_port=made[-1].number, host_port_last=0))
        except BaseException:
            for claim in made:
                claim.close()
            raise
        with self._lock:
            self._held.setdefault(key, []).extend(made)
        return tuple(granted)

    def share(self, key: Key) -> None:
        """Lets a program with SO_REUSEADDR bind them too."""
        with self._lock:
            for claim in self._held.get(key, ()):
                claim.share()

    def release(self, key: Key, protocol: str = "") -> None:
        """Lets go of the ports of a protocol, or of all."""
        with self._lock:
            held = self._held.pop(key, [])
            stay = [one for one in held if protocol and one.protocol != protocol]
            if stay:
                self._held[key] = stay
        for claim in held:
            if claim not in stay:
                claim.close()

    def close(self) -> None:
        for key in list(self._held):
            self.release(key)


def _claim(port: Port) -> kernel.Claim:
    """The port, or the first free one of a range."""
    for number in range(port.host_port, port.host_port_last):
        try:
            return _claim_one(attrs.evolve(port, host_port=number))
        except InUse:
            continue
    return _claim_one(attrs.evolve(port, host_port=port.host_port_last or port.host_port))


def _claim_one(port: Port) -> kernel.Claim:
    host = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    what = f"port {host + ':' if host else ''}{port.host_port or 'any'}/{port.protocol}"
    try:
        return kernel.claim(port.protocol, port.host_ip, port.host_port)
    except ValueError as error:
        raise Invalid(what, str(error)) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InUse(what, "is taken on this host", "choose another one with --publish") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise Invalid(what, f'"{port.host_ip}" is no address of this host') from None
        if error.errno == errno.EACCES:
            raise Denied(what, "this user may not listen there", "see net.ipv4.ip_unprivileged_port_start") from None
        raise
