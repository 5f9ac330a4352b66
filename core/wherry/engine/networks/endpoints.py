"""A sandbox's place in a network, as the engine remembers it: in memory, and as JSON in the table sandboxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from wherry.api import Attachment, Network, Port, RunRequest
from wherry.engine.containers.records import pack_request
from wherry.kit.codec import by_position, restore

if TYPE_CHECKING:
    from wherry.engine.containers.records import ContainerRecord
    from wherry.engine.state.state import State


@attrs.frozen
class SandboxEndpoint:
    """driver is the id of the network's driver; names are what the container is called there; addresses are CIDR, gateways bare. host:
    by what address it reaches the host.

    pending: its driver is making it, or taking it back; an engine that finds it so takes it back.
    """

    network: str
    driver: str
    interface: str = ""
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    mac: str = ""
    pending: bool = False
    host: str = ""


def endpoint_of(driver: str, attachment: Attachment) -> SandboxEndpoint:
    request = attachment.reservation.request
    return SandboxEndpoint(
        network=request.network,
        driver=driver,
        interface=request.interface,
        names=request.names,
        addresses=attachment.addresses,
        gateways=attachment.gateways,
        nameservers=attachment.nameservers,
        mac=attachment.mac,
        host=attachment.host,
    )


def network_id(driver: str, name: str) -> str:
    """64 hex digits that follow from a network's driver and name."""
    return hashlib.sha256(f"{driver}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()


def pack_endpoints(places: Sequence[SandboxEndpoint]) -> str:
    return json.dumps(places, default=by_position)


def keep_endpoints(state: State, sandbox_id: str, places: tuple[SandboxEndpoint, ...]) -> None:
    """Notes what a running sandbox is attached to; survives a crash of the engine."""
    with state.database.transaction(durable=False) as tx:
        tx.execute("UPDATE sandboxes SET attached = ? WHERE id = ?", (pack_endpoints(places), sandbox_id))
    state.attached[sandbox_id] = places


def published(driver: Network, sandbox_id: str, network: str) -> tuple[Port, ...]:
    """The ports that a sandbox has by a network."""
    found = [attachment.reservation for attachment in driver.inspect(network)[1]]
    return tuple(port for one in found if one.request.sandbox_id == sandbox_id for port in one.ports)


def settle_endpoints(
    state: State,
    record: ContainerRecord,
    places: tuple[SandboxEndpoint, ...],
    ports: tuple[Port, ...],
    request: RunRequest | None = None,
) -> None:
    """Writes down, for good, where a running container is now and what it publishes. request: what it wishes from now on, None: no
    change."""
    changes = {
        "networks": tuple(place.network for place in places),
        "addresses": tuple(address for place in places for address in place.addresses),
        "ports": ports,
    }
    with state.database.transaction() as tx:
        tx.execute("UPDATE containers SET data = ? WHERE id = ?", (record.pack(**changes), record.id))
        if request is not None:
            tx.execute("UPDATE containers SET request = ? WHERE id = ?", (pack_request(request), record.id))
        tx.execute("UPDATE sandboxes SET attached = ? WHERE id = ?", (pack_endpoints(places), record.id))
    if request is not None:
        record.request = request
    record.apply(changes)
    state.attached[record.id] = places


def unpack_endpoints(text: str) -> tuple[SandboxEndpoint, ...]:
    """What ``pack_endpoints`` wrote, or an engine that knew of nothing but network and driver."""
    return restore(tuple[SandboxEndpoint, ...], json.loads(text))
