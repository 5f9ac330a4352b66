"""The published ports of an endpoint. The sockets that claim them are those that netd answers on later, so that there is no moment in
which a port is free.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

from wherry.api import Port
from wherry.kit.networks import ports as host
from wherry.kit.networks.ports import PortClaim

_BACKLOG = 512


@define
class EndpointPorts:
    """The ports of one endpoint with what holds them, by the port as it was granted."""

    held: dict[Port, PortClaim] = field(factory=dict)

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(self.held)

    def descriptors(self) -> dict[Port, tuple[int, ...]]:
        return {port: tuple(sock.fileno() for sock in claim.sockets) for port, claim in self.held.items()}

    def close(self) -> None:
        for claim in self.held.values():
            claim.close()
        self.held.clear()


def claim(ports: Iterable[Port]) -> EndpointPorts:
    """All of them or none. Errors are those of ``wherry.kit.networks.ports.claim``."""
    return EndpointPorts(host.claim(ports, backlog=_BACKLOG))
