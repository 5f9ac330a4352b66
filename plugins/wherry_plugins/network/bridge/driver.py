"""The driver: networks, reservations and attachments over the store, the links and netd."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator

from attrs import evolve

from wherry.api import (
    AlreadyExists,
    Attachment,
    AttachRequest,
    Context,
    Error,
    FailedPrecondition,
    Invalid,
    NetworkConfig,
    NotFound,
    Port,
    Reservation,
    Sandbox,
)
from wherry.kit.names import check_name
from wherry.kit.networks import addresses as ip
from wherry.kit.networks import sandboxes
from wherry.kit.networks.definition import check_addresses, fill
from wherry.kit.networks.store import NetworkStore, StoredEndpoint, StoredNetwork
from wherry_plugins.network.bridge.config import BridgeConfig, options_of
from wherry_plugins.network.bridge.links import BridgeLinks, BridgeShape
from wherry_plugins.network.bridge.netns import BridgeNetns
from wherry_plugins.network.bridge.ports import EndpointPorts, claim
from wherry_plugins.network.bridge.services import RESOLVER, Services

DEFAULT = "bridge"
log = logging.getLogger(__name__)


class BridgeNetwork:
    """``wherry.api.Network``. What it knows is in its databases, what it made is in the hub; in memory are only the sockets of
    ports that were reserved and not yet attached, and which bridges this process found up."""

    def __init__(self, config: BridgeConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._store = NetworkStore(context.root, context.run)
        self._hub = BridgeNetns(context)
        self._links = BridgeLinks(context, self._hub)
        self._lock = threading.RLock()
        self._up: dict[str, int] = {}
        self._claims: dict[tuple[str, str], EndpointPorts] = {}
        self._services = Services(context, self._hub)
        self._again()

    def _again(self) -> None:
        """What an engine before this one attached goes on, whatever has died meanwhile."""
        places = self._store.places("attached = 1")
        if not places:
            return
        with self._lock:
            for place, cause in self._services.again(places, self._tell):
                what = f"container {place.sandbox_id[:12]} in network {place.network}"
                log.warning("%s: its names and ports were lost: %s", what, cause)

    def _tell(self, place: StoredEndpoint, claims: EndpointPorts | None) -> None:
        config = self._ready(place.network)
        named = self._named(config)
        alone = named and len(self._store.places("sandbox = ?", (place.sandbox_id,))) == 1
        self._services.endpoint(place, config, claims, named=named, alone=alone)

    def close(self) -> None:
        """Lets go of what this process holds; networks and containers stay as they are."""
        self._links.flush()
        self._hub.close()
        for claims in list(self._claims.values()):
            claims.close()
        self._services.netd.close()
        self._store.close()

    # networks

    def create(self, config: NetworkConfig) -> NetworkConfig:
        check_name(config.name, "network name")
        options = options_of(config)
        with self._lock:
            if config.name == DEFAULT or self._store.network(config.name) is not None:
                raise AlreadyExists(f'network "{config.name}"', "there is one of that name")
            if options.interface:
                self._free(options.interface)
            return self._define(config).config

    def _free(self, interface: str) -> None:
        """AlreadyExists where somebody else's link has that name, or another network is to have it."""
        for stored in self._store.networks():
            if self._interface(stored.config) == interface:
                raise AlreadyExists(f'interface "{interface}"', f'is that of network "{stored.config.name}"')
        if self._links.index(interface):
            raise AlreadyExists(f'interface "{interface}"', "the host has one of that name")

    def _define(self, config: NetworkConfig, chosen: bool = False) -> StoredNetwork:
        """Fills the config and keeps it. chosen: choose the subnets, though there are some."""
        chosen = chosen or not config.subnets
        others = [
            (stored.config.name, ip.subnet(text))
            for stored in self._store.networks()
            if stored.config.name != config.name
            for text in stored.config.subnets
        ]
        filled = fill(
            config,
            pools=self._config.pools,
            others=others,
            taken=lambda: self._links.taken(self._interface(config)),
            seed=f"{self._context.root}\0{config.name}",
        )
        self._store.keep(filled, chosen)
        return StoredNetwork(filled, chosen)

    def _interface(self, config: NetworkConfig) -> str:
        return options_of(config).interface or self._links.bridge_name(config.name)

    def remove(self, name: str) -> None:
        if name == DEFAULT:
            raise Invalid(f'network "{name}"', "is built in and can't be removed")
        with self._lock:
            stored = self._store.network(name)
            if stored is None:
                return
            self._store.need_unused(name)
            self._down(stored.config)
            self._store.drop(name)

    def list(self) -> Iterator[NetworkConfig]:
        self._known(DEFAULT)
        yield from [stored.config for stored in self._store.networks()]

    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]:
        config = self._known(name).config
        places = self._store.places("network = ? AND attached = 1 ORDER BY sandbox", (name,))
        return config, tuple(self._attachment(config, place) for place in places)

    def _known(self, name: str) -> StoredNetwork:
        """The built-in network's subnet is chosen when it is first looked at."""
        stored = self._store.network(name)
        if stored is None and name == DEFAULT:
            with self._lock:
                stored = self._store.network(name)
                if stored is None:
                    subnets = (self._config.subnet,) if self._config.subnet else ()
                    stored = self._define(NetworkConfig(DEFAULT, subnets, ipv6=self._config.ipv6))
        if stored is None:
            raise NotFound(f'network "{name}"', "no such network", f"make it: wherry network create {name}")
        return stored

    # bridges

    def _shape(self, config: NetworkConfig) -> BridgeShape:
        return BridgeShape(
            interface=self._interface(config),
            mtu=options_of(config).mtu or self._config.mtu,
            six=config.ipv6,
            internal=config.internal,
            icc=options_of(config).icc,
            gateways=config.gateways,
            subnets=config.subnets,
        )

    def _ready(self, name: str) -> NetworkConfig:
        """The network with its bridge up."""
        with self._lock:
            stored = self._known(name)
            if name in self._up:
                return stored.config
            shape = self._shape(stored.config)
            if stored.chosen and self._store.in_use(name) is None and not self._links.index(shape.interface):
                stored = self._chosen_again(stored, shape)
                shape = self._shape(stored.config)
            index = self._links.up(shape)
            self._services.network(stored.config, shape.interface, shape.mtu, named=self._named(stored.config))
            self._up[name] = index
            return stored.config

    def _bridge(self, config: NetworkConfig) -> int:
        """The index of the network's bridge, which is up then."""
        with self._lock:
            self._ready(config.name)
            return self._up[config.name]

    @staticmethod
    def _named(config: NetworkConfig) -> bool:
        """As docker's: containers of the built-in network do not know each other by name, unless an option says so."""
        return options_of(config).names and config.name != DEFAULT

    def _chosen_again(self, stored: StoredNetwork, shape: BridgeShape) -> StoredNetwork:
        """Somebody else on this host may have taken the subnet that was chosen here while nothing used it."""
        mine = [ip.subnet(text) for text in stored.config.subnets]
        if not any(ip.overlap(one, other) for other in self._links.taken(shape.interface) for one in mine):
            return stored
        return self._define(evolve(stored.config, subnets=(), gateways=(), ip_ranges=()))

    def _down(self, config: NetworkConfig) -> None:
        self._up.pop(config.name, None)
        self._services.netd.forget_network(config.name)
        self._links.down(self._shape(config))

    # places

    def reserve(self, request: AttachRequest) -> Reservation:
        self._check(request)
        mac = ip.check_mac(request.mac) if request.mac else ""
        claims = claim(request.ports)
        try:
            with self._lock:  # the network stays as it is until it has the place
                config = self._ready(request.network)
                place = self._store.reserve(config, request, claims.ports, mac, self._links.host_end())
        except BaseException:
            claims.close()
            raise
        if claims.held:
            self._claims[request.sandbox_id, request.network] = claims
        return place.reservation

    def _check(self, request: AttachRequest) -> None:
        check_name(request.sandbox_id, "sandbox id")
        config = self._known(request.network).config
        if request.ports and config.internal:
            port = request.ports[0]
            raise Invalid(
                f"port {port.container_port}/{port.protocol}",
                f'network "{config.name}" is internal: nothing outside reaches it',
                "leave out --publish, or put another network first",
            )
        check_addresses(config, request)

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        request = reservation.request
        place = self._store.place(request.sandbox_id, request.network)
        if place is None:
            raise NotFound(f'sandbox "{request.sandbox_id}"', f'has no place in network "{request.network}"')
        sandboxes.refuse_hosts(sandbox)
        config = self._ready(request.network)
        if not place.attached:
            self._plug(place, config)
            self._store.attached(request.sandbox_id, request.network)
        return self._attachment(config, place)

    def _plug(self, place: StoredEndpoint, config: NetworkConfig) -> None:
        key = (place.sandbox_id, place.network)
        bridge = self._bridge(config)
        try:
            self._links.plug(place, self._shape(config), bridge)
        except OSError:
            with self._lock:
                if self._links.index(self._interface(config)) == bridge:
                    raise
                if self._up.get(config.name) == bridge:  # else it is known already that somebody took the bridge away
                    del self._up[config.name]
            self._links.plug(place, self._shape(config), self._bridge(config))
        self._tell(place, self._claims.get(key))
        if (claims := self._claims.pop(key, None)) is not None:
            claims.close()  # netd has them now

    def publish(self, sandbox_id: str, network: str, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        what = f'sandbox "{sandbox_id}"'
        place = self._store.place(sandbox_id, network)
        if place is None or not place.attached:
            raise NotFound(what, f'is not attached to network "{network}"')
        if place.reservation.ports:
            raise FailedPrecondition(what, f'publishes ports by network "{network}" already')
        self._check(evolve(place.reservation.request, ports=ports))
        claims = claim(ports)
        try:
            self._publish(self._store.publish(place, claims.ports), claims)
            return claims.ports
        except BaseException:
            self._store.publish(place, ())
            raise
        finally:
            claims.close()  # netd has its own

    def _publish(self, place: StoredEndpoint, claims: EndpointPorts) -> None:
        config = self._ready(place.network)
        self._links.adjust(place, self._shape(config))
        self._services.endpoint(place, config, claims, named=self._named(config), alone=False)

    def _attachment(self, config: NetworkConfig, place: StoredEndpoint) -> Attachment:
        return Attachment(
            reservation=place.reservation,
            mac=place.mac,
            addresses=place.reservation.addresses,
            gateways=() if config.internal else config.gateways,
            nameservers=(RESOLVER,) if self._named(config) else (),
            host=self._hub.host(config),
        )

    def detach(self, sandbox_id: str, network: str) -> None:
        place = self._store.place(sandbox_id, network)
        claims = self._claims.pop((sandbox_id, network), None)
        if claims is not None:
            claims.close()
        if place is None:
            return
        self._services.netd.forget(sandbox_id, network)
        if self._runs(sandbox_id):  # it would stay in a network that it has left, by an address that others may get
            self._links.delete(place.link)
        else:
            self._links.leave(place.link)
        self._store.release(sandbox_id, network)

    def _runs(self, sandbox_id: str) -> bool:
        """Whether the first container of a sandbox goes on; a shim that is gone knows of none."""
        try:
            tasks = list(self._context.shim.list(sandbox_id))
        except (Error, OSError):
            return False
        return any(task.status in ("running", "paused") and not task.exec_id for task in tasks)

    def check(self, sandbox_id: str, network: str) -> None:
        config = self._known(network).config
        place = self._store.place(sandbox_id, network)
        if place is None or not place.attached:
            raise NotFound(f'sandbox "{sandbox_id}"', f'is not attached to network "{network}"')
        self._links.check(place, self._interface(config))
        self._services.netd.check(sandbox_id, network)

    def gc(self, live: Collection[str]) -> int:
        keep = frozenset(live)
        gone = [place for place in self._store.places() if place.sandbox_id not in keep]
        for place in gone:
            self.detach(place.sandbox_id, place.network)
        self._links.flush()
        with self._lock:
            places = self._store.places()
            configs = [stored.config for stored in self._store.networks()]
            strays = self._links.strays(
                {self._interface(config) for config in configs}, {place.link for place in places}
            )
            self._links.delete(*strays)
            if places:
                self._compare()
            else:
                self._rest(configs)
        return len(gone)

    def _compare(self) -> None:
        """Rules that others have changed are mended as they change; this finds what went by unheard."""
        try:
            self._services.netd.check()
        except FailedPrecondition as error:
            log.warning("%s", error)

    def _rest(self, configs: Collection[NetworkConfig]) -> None:
        """Nothing is attached: bridges, rules and netd go, until somebody needs them."""
        self._services.netd.stop()
        self._up.clear()
        if self._hub.sandbox_id:
            self._hub.remove()
        else:
            for config in configs:
                self._links.down(self._shape(config))
