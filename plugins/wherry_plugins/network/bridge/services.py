"""What netd does for networks and their containers: rules, published ports, names. Here it is told, and given sockets."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Collection, Mapping

from wherry.api import Context, InUse, NetworkConfig, Port
from wherry.kit.networks.store import StoredEndpoint
from wherry_plugins.network.bridge import redirect
from wherry_plugins.network.bridge.config import options_of
from wherry_plugins.network.bridge.netd.client import Netd
from wherry_plugins.network.bridge.netns import BridgeNetns
from wherry_plugins.network.bridge.ports import EndpointPorts, claim
from wherry_plugins.network.bridge.records import BridgeState, EndpointState
from wherry_plugins.network.bridge.transaction import PROTOCOL

#: Where a container's resolver is, inside its own network namespace; as Docker's.
RESOLVER = "127.0.0.11"
_BACKLOG = 64
#: So long the kernel may take to end a process that was killed, on a busy machine.
_DYING = 10.0


class Services:
    """One netd. named: whether a network's containers know each other by name."""

    def __init__(self, context: Context, hub: BridgeNetns) -> None:
        self._context = context
        self._hub = hub
        self.netd = Netd(context, hub.sandbox_id)

    def network(self, config: NetworkConfig, interface: str, mtu: int, *, named: bool) -> None:
        options = options_of(config)
        self._hub.connect()
        self.netd.network(
            BridgeState(
                name=config.name,
                interface=interface,
                subnets=config.subnets,
                gateways=config.gateways,
                internal=config.internal,
                isolated=options.isolate,
                masquerade=options.masquerade,
                icc=options.icc,
                mtu=mtu or 1500,
                names=named,
            )
        )

    def endpoint(
        self, place: StoredEndpoint, config: NetworkConfig, claims: EndpointPorts | None, *, named: bool, alone: bool
    ) -> None:
        """Once the container's end of the link is there. claims are the sockets of its ports; netd has its own after this. alone:
        the container is in no other network."""
        request = place.reservation.request
        self._hub.connect()  # what was killed meanwhile is started again
        # Of a network without names too: it may be the only way out of a container that has a resolver by another one.
        forwarders = () if config.internal else self._forwarders(request.nameservers)
        state = EndpointState(
            sandbox_id=request.sandbox_id,
            network=request.network,
            interface=place.link,
            addresses=place.reservation.addresses,
            mac=place.mac,
            names=tuple(dict.fromkeys((*request.names, request.sandbox_id[:12]))) if named else (),
            ports=place.reservation.ports,
            forwarders=forwarders,
            search=request.search if named else (),
        )
        wanted = named and (alone or not self._resolves(request.sandbox_id))
        resolvers = self._resolvers(request.sandbox_id) if wanted else []
        listeners: Mapping[Port, tuple[int, ...]] = claims.descriptors() if claims is not None else {}
        try:
            self.netd.endpoint(state, tuple(one.fileno() for one in resolvers), listeners)
        finally:
            for one in resolvers:
                one.close()

    def _resolvers(self, sandbox_id: str) -> list[socket.socket]:
        """Sockets that the shim opened in the container's namespace, to be had at port 53 there (see ``redirect``)."""
        shim = self._context.shim
        made: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                fd = shim.socket(sandbox_id, socket.AF_INET, kind | socket.SOCK_CLOEXEC, 0)
                made.append(one := socket.socket(fileno=fd))
                one.bind((RESOLVER, 0))
            made[1].listen(_BACKLOG)
            ports = {int(one.type): one.getsockname()[1] for one in made}
            raw = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            redirect.redirect(shim.socket(sandbox_id, socket.AF_NETLINK, raw, PROTOCOL), RESOLVER, ports)
        except BaseException:
            for one in made:
                one.close()
            raise
        return made

    def _resolves(self, sandbox_id: str) -> bool:
        """Whether it has resolvers by another of its networks."""
        return any(key[0] == sandbox_id and held[0] for key, held in self.netd.known().items())

    def _forwarders(self, wished: tuple[str, ...]) -> tuple[str, ...]:
        """The name servers to ask: the user's, else the host's. Those on the host's loopback are there for netd only where it is on
        the host itself."""
        found = wished or ((self._hub.nameserver(),) if self._hub.nameserver() else ())
        for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
            if found:
                break
            found = tuple(text for text in _nameservers(path) if not self._hub.sandbox_id or not _loopback(text))
        return found

    def again(
        self, places: Collection[StoredEndpoint], tell: Callable[[StoredEndpoint, EndpointPorts | None], None]
    ) -> list[tuple[StoredEndpoint, str]]:
        """After a restart of the engine: what no netd has any more is told once more. Those that could not be, and why."""
        known = self.netd.known()
        failed = []
        until = time.monotonic() + _DYING
        for place in places:
            request = place.reservation.request
            held = known.get((request.sandbox_id, request.network))
            # Fewer sockets than ports: the engine died while it told them.
            if held is not None and held[1] >= len(place.reservation.ports):
                continue
            claims = None
            try:
                if place.reservation.ports:
                    claims = _claimed(place.reservation.ports, until)
                tell(place, claims)
            except Exception as error:
                failed.append((place, str(error)))
            finally:
                if claims is not None:
                    claims.close()
        return failed


def _claimed(ports: tuple[Port, ...], until: float) -> EndpointPorts:
    """A netd that was killed a moment ago may still hold them."""
    while True:
        try:
            return claim(ports)
        except InUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _nameservers(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def _loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False
