"""Bridges and veth pairs, by routing netlink in the hub and in the container's namespace."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections import deque

from attrs import frozen

from wherry.api import AlreadyExists, Context, FailedPrecondition
from wherry.kit.networks import addresses as ip
from wherry.kit.networks import interfaces, messages, netlink, sandboxes
from wherry.kit.networks.netlink import ADD, Rtnl
from wherry.kit.networks.store import StoredEndpoint
from wherry_plugins.network.bridge.netns import BridgeNetns

BRIDGE, VETH = "whb", "whv"
#: The end of a container's namespace takes its veth pair along, in a batch with others; what is there later is taken away.
LEAVE_SECONDS = 0.5


@frozen
class BridgeShape:
    """What a bridge and its veth pairs look like. mtu 0: the kernel's own. icc: the containers may speak to each other."""

    interface: str
    mtu: int
    six: bool
    internal: bool
    icc: bool
    gateways: tuple[str, ...]
    subnets: tuple[str, ...]


def name_of(prefix: str, *parts: str) -> str:
    """The name of a link: 13 of the 15 letters it may have (netdevice(7), IFNAMSIZ)."""
    seed = "\0".join(parts).encode("utf-8", "surrogateescape")
    return prefix + hashlib.sha256(seed).hexdigest()[:10]


class BridgeLinks:
    """seed tells the links of one engine from those of others on the same host."""

    def __init__(self, context: Context, hub: BridgeNetns) -> None:
        self._context = context
        self._hub = hub
        self._seed = str(context.run)
        self._leaving: deque[str] = deque()
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def bridge_name(self, network: str) -> str:
        return name_of(BRIDGE, self._seed, network)

    @staticmethod
    def host_end() -> str:
        """A new name: that of a pair which is about to go must not be met again."""
        return VETH + secrets.token_hex(5)

    # bridges

    def up(self, shape: BridgeShape) -> int:
        """The bridge with its addresses; its index. What is there already is left as it is. AlreadyExists: it is not ours."""
        mac = ip.mac_of(ip.address(shape.gateways[0]))
        with self._hub.rtnl() as rtnl:
            kind = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]})
            wish = netlink.link(shape.interface, attributes=[kind, ("IFLA_ADDRESS", mac), *_mtu(shape)])
            try:
                rtnl.ask((netlink.NEWLINK, ADD, wish, f"bridge {shape.interface}"))
            except FileExistsError:
                if self._foreign(rtnl, shape):
                    raise AlreadyExists(f'interface "{shape.interface}"', "the host has one of that name") from None
            index = rtnl.index(shape.interface)
            with contextlib.suppress(FileExistsError):
                rtnl.ask(
                    *([] if shape.six else [interfaces.without_link_local(index)]),
                    *[
                        (
                            netlink.NEWADDR,
                            ADD & ~netlink.EXCL | netlink.REPLACE,
                            netlink.address(index, f"{gateway}/{ip.subnet(subnet).prefixlen}"),
                            f"address {gateway}",
                        )
                        for gateway, subnet in zip(shape.gateways, shape.subnets, strict=True)
                    ],
                    (netlink.SETLINK, 0, netlink.link(index=index, up=True), f"bridge {shape.interface}"),
                )
            return index

    @staticmethod
    def _foreign(rtnl: Rtnl, shape: BridgeShape) -> bool:
        """Whether somebody else made that link, after the name was chosen. A name made up here is ours alone; for the user's, a
        bridge of ours has the hardware address that it was made with."""
        if shape.interface.startswith(BRIDGE):
            return False
        found = [
            one for one in rtnl.dump(netlink.GETLINK, netlink.link()) if one.get_attr("IFLA_IFNAME") == shape.interface
        ]
        mac = ip.mac_of(ip.address(shape.gateways[0]))
        return any(one.get_attr("IFLA_ADDRESS") != mac for one in found)

    def down(self, shape: BridgeShape) -> None:
        """The bridge goes, unless it is somebody else's."""
        with self._hub.rtnl() as rtnl:
            foreign = self._foreign(rtnl, shape)
        if not foreign:
            self.delete(shape.interface)

    def index(self, name: str) -> int:
        """0 when there is no such link."""
        with self._hub.rtnl() as rtnl:
            return interfaces.index_of(rtnl, name)

    def delete(self, *names: str) -> None:
        """Links of the hub; one that is gone is passed over."""
        with self._hub.rtnl() as rtnl:
            for name in names:
                try:
                    rtnl.ask((netlink.DELLINK, 0, netlink.link(name), f"link {name}"))
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise

    def taken(self, besides: str) -> list[ip.Network]:
        """Subnets that the host has addresses of or routes to, but for those by the link "besides"."""
        with Rtnl() as rtnl:  # the host's own, where a user has a hub of its own too
            return interfaces.taken(rtnl, besides)

    def strays(self, bridges: set[str], expected: set[str]) -> list[str]:
        """Host ends on the bridges that belong to nobody."""
        with self._hub.rtnl() as rtnl:
            found = rtnl.dump(netlink.GETLINK, netlink.link())
        masters = {message["index"] for message in found if message.get_attr("IFLA_IFNAME") in bridges}
        return [
            name
            for message in found
            if (name := message.get_attr("IFLA_IFNAME")).startswith(VETH)
            and message.get_attr("IFLA_MASTER") in masters
            and name not in expected
        ]

    # veth pairs

    def plug(self, place: StoredEndpoint, shape: BridgeShape, bridge: int) -> None:
        """The pair between bridge and container, with address, hardware address and routes. FailedPrecondition when the sandbox's
        network namespace is no container's."""
        request = place.reservation.request
        with sandboxes.inside(self._context.shim, request.sandbox_id) as inside:
            netns = inside.namespace()
            try:
                if self._hub.is_ours(netns):
                    raise sandboxes.hosts(request.sandbox_id)
                self._pair(place, shape, bridge, netns)
            finally:
                os.close(netns)
            gateways = () if shape.internal else shape.gateways
            interfaces.furnish(inside, request.interface, place.reservation.addresses, gateways, six=shape.six)

    def _pair(self, place: StoredEndpoint, shape: BridgeShape, bridge: int, netns: int) -> None:
        inner = place.reservation.request.interface
        pair = messages.veth(place.link, bridge, inner, place.mac, netns, shape.mtu)
        steps = [(netlink.NEWLINK, ADD, pair, f"link {inner}")]
        if place.reservation.ports or not shape.icc:
            steps.append(_port(place, shape))
        with self._hub.rtnl() as rtnl:
            for again in (True, False):
                try:
                    rtnl.ask(*steps)
                    return
                except FileExistsError:
                    if not again:
                        raise
                    self.flush()  # its place is held by one that was about to go

    def adjust(self, place: StoredEndpoint, shape: BridgeShape) -> None:
        """The bridge's port of a pair that is there, to a place that has changed."""
        with self._hub.rtnl() as rtnl:
            rtnl.ask(_port(place, shape))

    def check(self, place: StoredEndpoint, bridge: str) -> None:
        """FailedPrecondition says what differs."""
        request = place.reservation.request
        what = f'sandbox "{request.sandbox_id}"'
        outer = place.link
        with self._hub.rtnl() as rtnl:
            master = interfaces.index_of(rtnl, bridge)
            if not master:
                raise FailedPrecondition(what, f'the bridge "{bridge}" of network "{request.network}" is gone')
            found = [one for one in rtnl.dump(netlink.GETLINK, netlink.link()) if one.get_attr("IFLA_IFNAME") == outer]
            if not found:
                raise FailedPrecondition(what, f'its link "{outer}" is gone')
            if found[0].get_attr("IFLA_MASTER") != master:
                raise FailedPrecondition(what, f'its link "{outer}" is not on the bridge "{bridge}"')
        with sandboxes.inside(self._context.shim, request.sandbox_id) as rtnl:
            if differs := interfaces.lacking(rtnl, request.interface, place.reservation.addresses):
                raise FailedPrecondition(what, differs)

    # what leaves

    def leave(self, name: str) -> None:
        """Sees to it that a host end goes, and does not wait for it."""
        with self._guard:
            self._leaving.append(name)
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._sweep, name="wherry-links", daemon=True)
                self._thread.start()

    def _all_leaving(self) -> list[str]:
        with self._guard:
            names = list(self._leaving)
            self._leaving.clear()
        return names

    def flush(self) -> None:
        """What is about to leave goes now."""
        self._wake.set()
        if names := self._all_leaving():
            self.delete(*names)

    def _sweep(self) -> None:
        while True:
            self._wake.wait(LEAVE_SECONDS)
            names = self._all_leaving()
            with contextlib.suppress(OSError):  # what it could not take away is found by gc
                self.delete(*names)
            with self._guard:
                if not self._leaving:
                    self._thread = None
                    return


def _port(place: StoredEndpoint, shape: BridgeShape) -> tuple[int, int, bytes, str]:
    """What a bridge is to do at the container's port, if anything (bridge(8)).

    isolated: frames of other such ports do not go there. hairpin: with the module br_netfilter a published port is translated
    while the frame is still the bridge's, and a container that calls itself by it would get nothing back.
    """
    port = messages.port(place.link, hairpin=bool(place.reservation.ports), isolated=not shape.icc)
    return netlink.NEWLINK, 0, port, f"port of {place.link}"


def _mtu(shape: BridgeShape) -> list[tuple[str, int]]:
    return [("IFLA_MTU", shape.mtu)] if shape.mtu else []
