"""The driver: networks and places in ``wherry.kit.networks.store``, links by ``links``."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from wherry.api import (
    AlreadyExists,
    Attachment,
    AttachRequest,
    Context,
    FailedPrecondition,
    Invalid,
    NetworkConfig,
    NotFound,
    Reservation,
    Sandbox,
)
from wherry.kit import options
from wherry.kit.names import check_name
from wherry.kit.networks import addresses as ip
from wherry.kit.networks import interfaces, sandboxes
from wherry.kit.networks.definition import check_addresses, fill
from wherry.kit.networks.netlink import Rtnl
from wherry.kit.networks.store import NetworkStore, StoredEndpoint
from wherry_plugins.network.macvlan.links import MODES, MacvlanLinks, MacvlanShape

if TYPE_CHECKING:
    from wherry_plugins.network.macvlan import MacvlanConfig

_OPTIONS: dict[str, options.Reader] = {
    "parent": lambda text: text and options.interface(text),
    "mode": options.choice(*MODES),
    "mtu": options.mtu,
}
_DOCKER = {"macvlan_mode": "mode", "com.docker.network.driver.mtu": "mtu"}


class MacvlanNetwork:
    """``wherry.api.Network``."""

    def __init__(self, config: MacvlanConfig, context: Context) -> None:
        self._config = config
        self._root = str(context.root)
        self._store = NetworkStore(context.root, context.run)
        self._links = MacvlanLinks(context)
        self._lock = threading.RLock()

    def close(self) -> None:
        self._store.close()

    # networks

    def create(self, config: NetworkConfig) -> NetworkConfig:
        check_name(config.name, "network name")
        self._shape(config)
        with self._lock:
            if self._store.network(config.name) is not None:
                raise AlreadyExists(f'network "{config.name}"', "there is one of that name")
            others = [
                (stored.config.name, ip.subnet(text))
                for stored in self._store.networks()
                for text in stored.config.subnets
            ]
            filled = fill(
                config,
                pools=self._config.pools,
                others=others,
                taken=_taken,
                seed=f"{self._root}\0{config.name}",
            )
            self._links.up(self._shape(filled))
            self._store.keep(filled, not config.subnets)
        return filled

    def remove(self, name: str) -> None:
        with self._lock:
            if self._store.network(name) is None:
                return
            self._store.need_unused(name)
            self._store.drop(name)
            self._tidy()

    def _tidy(self) -> None:
        self._links.tidy({self._shape(stored.config).parent for stored in self._store.networks()})

    def list(self) -> Iterator[NetworkConfig]:
        yield from [stored.config for stored in self._store.networks()]

    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]:
        config = self._known(name)
        places = self._store.places("network = ? AND attached = 1 ORDER BY sandbox", (name,))
        return config, tuple(self._attachment(config, place) for place in places)

    def _known(self, name: str) -> NetworkConfig:
        stored = self._store.network(name)
        if stored is None:
            raise NotFound(
                f'network "{name}"', "no such network", f"make it: wherry network create --driver macvlan {name}"
            )
        return stored.config

    def _shape(self, config: NetworkConfig) -> MacvlanShape:
        """Invalid for an unknown option or a wrong value."""
        defaults = {} if config.internal else {"parent": self._config.parent}
        given = {**defaults, **config.options}
        wish = options.read_options(given, _OPTIONS, 'the network driver "macvlan"', _DOCKER)
        parent = wish.get("parent", "")
        seed = f"{self._root}\0{config.name}".encode()
        return MacvlanShape(
            parent=parent or f"whm{hashlib.sha256(seed).hexdigest()[:10]}",
            mode=wish.get("mode", "bridge"),
            mtu=wish.get("mtu", 0),
            six=any(":" in subnet for subnet in config.subnets),
            made=not parent,
            gateways=() if config.internal else config.gateways,
        )

    # places

    def reserve(self, request: AttachRequest) -> Reservation:
        check_name(request.sandbox_id, "sandbox id")
        config = self._known(request.network)
        if request.ports:
            port = request.ports[0]
            raise Invalid(
                f"port {port.container_port}/{port.protocol}",
                "a macvlan network publishes none: its containers are on the parent's network themselves",
                "leave out --publish and use the container's address",
            )
        check_addresses(config, request)
        mac = ip.check_mac(request.mac) if request.mac else ""
        if mac and self._shape(config).mode == "passthru":
            raise Invalid(f'address "{mac}"', 'in mode "passthru" a container has the hardware address of the parent')
        with self._lock:
            config = self._known(request.network)  # it may have been removed, or made anew
            return self._store.reserve(config, request, (), mac, "").reservation

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        request = reservation.request
        place = self._store.place(request.sandbox_id, request.network)
        if place is None:
            raise NotFound(f'sandbox "{request.sandbox_id}"', f'has no place in network "{request.network}"')
        sandboxes.refuse_hosts(sandbox)
        config = self._known(request.network)
        if not place.attached:
            shape = self._shape(config)
            with self._lock:
                parent = self._links.up(shape)  # made anew after a boot
            self._links.plug(place, shape, parent)
            self._store.attached(request.sandbox_id, request.network)
        return self._attachment(config, place)

    def _attachment(self, config: NetworkConfig, place: StoredEndpoint) -> Attachment:
        shape = self._shape(config)
        return Attachment(
            reservation=place.reservation,
            mac=self._links.mac(place, shape),
            addresses=place.reservation.addresses,
            gateways=() if shape.made else shape.gateways,
        )

    def detach(self, sandbox_id: str, network: str) -> None:
        place = self._store.place(sandbox_id, network)
        if place is None:
            return
        self._links.unplug(place)
        self._store.release(sandbox_id, network)

    def check(self, sandbox_id: str, network: str) -> None:
        config = self._known(network)
        place = self._store.place(sandbox_id, network)
        if place is None or not place.attached:
            raise NotFound(f'sandbox "{sandbox_id}"', f'is not attached to network "{network}"')
        try:
            differs = self._links.differs(place, self._shape(config))
        except NotFound:
            differs = "is attached, but no shim holds its namespaces"
        if differs:
            raise FailedPrecondition(f'sandbox "{sandbox_id}"', differs)

    def gc(self, live: Collection[str]) -> int:
        keep = frozenset(live)
        gone = [place for place in self._store.places() if place.sandbox_id not in keep]
        for place in gone:
            self.detach(place.sandbox_id, place.network)
        with self._lock:
            if not self._store.places():
                self._links.tidy(())
            else:
                self._tidy()
        return len(gone)


def _taken() -> list[ip.Network]:
    with Rtnl() as rtnl:
        return interfaces.taken(rtnl)
