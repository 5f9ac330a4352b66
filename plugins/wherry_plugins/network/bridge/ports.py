"""The published ports of an endpoint. The sockets that claim them are those that netd answers on later, so that there is no moment in
which a port is free.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

from wherry.api import Port
from wherry.linux.ports import Claim
from wherry.networks import claims

_BACKLOG = 512


@define
class Claims:
    """The ports of one endpoint with what holds them, by the port as it was granted."""

    held: dict[Port, Claim] = field(factory=dict)

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(self.held)

    def descriptors(self) -> dict[Port, tuple[int, ...]]:
        return {port: tuple(sock.fileno() for sock in claim.sockets) for port, claim in self.held.items()}

    def close(self) -> None:
        for claim in self.held.values():
            claim.close()
        self.held.clear()


def claim(ports: Iterable[Port]) -> Claims:
    """All of them or none. Errors are those of ``wherry.networks.claims.claim``."""
    return Claims(claims.claim(ports, backlog=_BACKLOG))
