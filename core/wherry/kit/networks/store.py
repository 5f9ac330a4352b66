"""What the driver remembers: networks below its root, for good; places of containers below its run directory, for this boot."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from wherry.api import AttachRequest, InUse, NetworkConfig, Port, Reservation
from wherry.kit.codec import by_position, restore
from wherry.kit.database import Database
from wherry.kit.networks import addresses as ip

_NETWORKS = """
CREATE TABLE networks (
    name TEXT PRIMARY KEY, config TEXT NOT NULL, chosen INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
"""
_PLACES = """
CREATE TABLE places (
    sandbox TEXT NOT NULL, network TEXT NOT NULL, attached INTEGER NOT NULL, request TEXT NOT NULL, netns TEXT NOT NULL,
    addresses TEXT NOT NULL, ports TEXT NOT NULL, mac TEXT NOT NULL, link TEXT NOT NULL, PRIMARY KEY (sandbox, network)
) WITHOUT ROWID, STRICT;
CREATE TABLE addresses (
    network TEXT NOT NULL, address TEXT NOT NULL, sandbox TEXT NOT NULL, PRIMARY KEY (network, address)
) WITHOUT ROWID, STRICT;
CREATE TABLE cursors (
    network TEXT NOT NULL, subnet TEXT NOT NULL, last TEXT NOT NULL, PRIMARY KEY (network, subnet)
) WITHOUT ROWID, STRICT;
"""


@frozen
class StoredNetwork:
    """A network. chosen: its subnets come from the pools, the user named none."""

    config: NetworkConfig
    chosen: bool


@frozen
class StoredEndpoint:
    """A container's place in a network, from reserve to detach. link: the hub's end of its veth pair, a name never used before."""

    reservation: Reservation
    mac: str
    link: str
    attached: bool

    @property
    def sandbox_id(self) -> str:
        return self.reservation.request.sandbox_id

    @property
    def network(self) -> str:
        return self.reservation.request.network


class NetworkStore:
    """Both databases. A change of places is one transaction, so that two starts never get one address."""

    def __init__(self, root: Path, run: Path) -> None:
        self._networks = Database(root / "networks.db", _NETWORKS, 1)
        self._places = Database(run / "places.db", _PLACES, 1)
        self._changing = threading.Lock()
        self._known: dict[str, StoredNetwork] = {}  # that were asked for; nobody else writes the database

    def close(self) -> None:
        self._networks.close()
        self._places.close()

    # networks

    def networks(self) -> list[StoredNetwork]:
        return [_stored(row) for row in self._networks.all("SELECT config, chosen FROM networks ORDER BY name")]

    def network(self, name: str) -> StoredNetwork | None:
        """None where there is none of that name."""
        with suppress(KeyError):
            return self._known[name]
        with self._changing:
            row = self._networks.row("SELECT config, chosen FROM networks WHERE name = ?", (name,))
            if row is None:
                return None
            self._known[name] = _stored(row)
            return self._known[name]

    @contextmanager
    def _changed(self, name: str) -> Iterator[Any]:
        """A transaction after which that network is looked up anew."""
        with self._changing:
            try:
                with self._networks.write() as execute:
                    yield execute
            finally:
                self._known.pop(name, None)

    def keep(self, config: NetworkConfig, chosen: bool) -> None:
        """Adds a network, or changes it."""
        with self._changed(config.name) as execute:
            execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?, ?)",
                (config.name, json.dumps(attrs.asdict(config)), int(chosen)),
            )
        with self._places.write(durable=False) as execute:
            execute("DELETE FROM cursors WHERE network = ?", (config.name,))

    def drop(self, name: str) -> None:
        with self._changed(name) as execute:
            execute("DELETE FROM networks WHERE name = ?", (name,))
        with self._places.write(durable=False) as execute:
            execute("DELETE FROM cursors WHERE network = ?", (name,))

    # places

    def reserve(
        self, config: NetworkConfig, request: AttachRequest, ports: tuple[Port, ...], mac: str, link: str
    ) -> StoredEndpoint:
        """One address of each subnet: the wished one, else the next free one. InUse when it, or every one, is taken."""
        wished = [ip.address(text) for text in request.addresses]
        with self._places.write(durable=False) as execute:
            key = (request.sandbox_id, request.network)
            if execute("SELECT 1 FROM places WHERE sandbox = ? AND network = ?", key).fetchall():
                raise InUse(f'sandbox "{request.sandbox_id}"', f'has a place in network "{request.network}" already')
            given: list[tuple[ip.Network, ip.Address]] = []
            for text, gateway in zip(config.subnets, config.gateways, strict=True):
                subnet = ip.subnet(text)
                wish = next((one for one in wished if one in subnet), None)
                given.append((subnet, self._take(execute, config, subnet, gateway, wish)))
            for _subnet, address in given:
                execute("INSERT INTO addresses VALUES (?, ?, ?)", (config.name, str(address), request.sandbox_id))
            mac = mac or ip.mac_of(given[0][1])
            reservation = Reservation(
                request,
                addresses=tuple(f"{address}/{subnet.prefixlen}" for subnet, address in given),
                ports=ports,
            )
            execute(
                "INSERT INTO places VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?)",
                (
                    *key,
                    json.dumps(attrs.asdict(request)),
                    reservation.netns,
                    json.dumps(reservation.addresses),
                    json.dumps(ports, default=by_position),
                    mac,
                    link,
                ),
            )
        return StoredEndpoint(reservation, mac, link, False)

    @staticmethod
    def _take(
        execute: Any, config: NetworkConfig, subnet: ip.Network, gateway: str, wish: ip.Address | None
    ) -> ip.Address:
        rows = execute("SELECT address, sandbox FROM addresses WHERE network = ?", (config.name,)).fetchall()
        if wish is not None:
            for text, sandbox in rows:
                if text == str(wish):
                    raise InUse(f'address "{wish}"', f'is taken in network "{config.name}" by sandbox "{sandbox[:12]}"')
            if str(wish) == gateway:
                raise InUse(f'address "{wish}"', f'is the gateway of network "{config.name}"')
            return wish
        within = next((one for one in map(ip.subnet, config.ip_ranges) if ip.overlap(one, subnet)), subnet)
        taken = {int(address) for text, _sandbox in rows if (address := ip.address(text)).version == subnet.version}
        taken.add(int(ip.address(gateway)))
        cursor = execute(
            "SELECT last FROM cursors WHERE network = ? AND subnet = ?", (config.name, str(subnet))
        ).fetchall()
        number = ip.next_free(subnet, within, int(cursor[0][0]) if cursor else -1, taken)
        if number is None:
            raise InUse(f'network "{config.name}"', f"every address of {within} is taken")
        execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (config.name, str(subnet), str(number)))
        return type(subnet.network_address)(number)

    def attached(self, sandbox_id: str, network: str) -> None:
        with self._places.write(durable=False) as execute:
            execute("UPDATE places SET attached = 1 WHERE sandbox = ? AND network = ?", (sandbox_id, network))

    def publish(self, place: StoredEndpoint, ports: tuple[Port, ...]) -> StoredEndpoint:
        """The place with other published ports."""
        with self._places.write(durable=False) as execute:
            execute(
                "UPDATE places SET ports = ? WHERE sandbox = ? AND network = ?",
                (json.dumps(ports, default=by_position), place.sandbox_id, place.network),
            )
        return attrs.evolve(place, reservation=attrs.evolve(place.reservation, ports=ports))

    def place(self, sandbox_id: str, network: str) -> StoredEndpoint | None:
        found = self.places("sandbox = ? AND network = ?", (sandbox_id, network))
        return found[0] if found else None

    def places(self, where: str = "1", bindings: Iterable[str] = ()) -> list[StoredEndpoint]:
        rows = self._places.all(
            f"SELECT request, netns, addresses, ports, mac, link, attached FROM places WHERE {where}",  # noqa: S608 ours
            tuple(bindings),
        )
        return [_place(row) for row in rows]

    def in_use(self, network: str) -> StoredEndpoint | None:
        """Some place in a network, None when it has none."""
        found = self.places("network = ? LIMIT 1", (network,))
        return found[0] if found else None

    def need_unused(self, network: str) -> None:
        """InUse names a sandbox that has a place there."""
        if (place := self.in_use(network)) is not None:
            raise InUse(f'network "{network}"', f'sandbox "{place.sandbox_id[:12]}" is attached to it')

    def release(self, sandbox_id: str, network: str) -> bool:
        """Frees place and addresses; False when there was none."""
        with self._places.write(durable=False) as execute:
            key = (sandbox_id, network)
            if not execute("SELECT 1 FROM places WHERE sandbox = ? AND network = ?", key).fetchall():
                return False
            execute("DELETE FROM addresses WHERE sandbox = ? AND network = ?", key)
            execute("DELETE FROM places WHERE sandbox = ? AND network = ?", key)
        return True


def _stored(row: tuple[str, int]) -> StoredNetwork:
    return StoredNetwork(restore(NetworkConfig, json.loads(row[0])), bool(row[1]))


def _place(row: tuple[Any, ...]) -> StoredEndpoint:
    request, netns, addresses, ports, mac, link, attached = row
    reservation = Reservation(
        restore(AttachRequest, json.loads(request)),
        netns=netns,
        addresses=tuple(json.loads(addresses)),
        ports=restore(tuple[Port, ...], json.loads(ports)),
    )
    return StoredEndpoint(reservation, mac=mac, link=link, attached=bool(attached))


__all__ = ["NetworkStore", "StoredEndpoint", "StoredNetwork"]
