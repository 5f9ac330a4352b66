"""The parent interface and the containers' macvlan links on it, by routing netlink: ip-link(8), "VLAN" and "MACVLAN".

What was made here carries an alias, so that it is told from what was there before, and goes when nobody uses it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection
from typing import Any

from attrs import frozen

from wherry.api import Context, Error, FailedPrecondition, InUse, Invalid, NotFound
from wherry.kit.networks import interfaces, netlink, sandboxes
from wherry.kit.networks.netlink import ADD, Rtnl
from wherry.kit.networks.store import StoredEndpoint

#: <linux/if_link.h>, enum macvlan_mode
MODES = {"private": "private", "vepa": "vepa", "bridge": "bridge", "passthru": "passthru"}
_ALIAS = "wherry macvlan"


@frozen
class MacvlanShape:
    """Of a network's links. made: the parent is a dummy of ours. mtu 0: the parent's."""

    parent: str
    mode: str
    mtu: int
    six: bool
    made: bool
    gateways: tuple[str, ...]


class MacvlanLinks:
    """The alias tells the links of one engine from those of others on the same host."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._alias = f"{_ALIAS} {hashlib.sha256(os.fsencode(context.root)).hexdigest()[:12]}"

    # parents

    def up(self, shape: MacvlanShape) -> int:
        """The parent's index; a dummy and a VLAN of its link (eth0.10) are made when missing. NotFound, Invalid."""
        with Rtnl() as rtnl:
            index = interfaces.index_of(rtnl, shape.parent)
            if not index:
                self._make(rtnl, shape)
                index = rtnl.index(shape.parent)
            if shape.made or self._is_ours(rtnl, index):
                rtnl.ask((netlink.SETLINK, 0, netlink.link(index=index, up=True), f"link {shape.parent}"))
            return index

    def _make(self, rtnl: Rtnl, shape: MacvlanShape) -> None:
        if shape.made:
            attributes: list[tuple[str, Any]] = [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "dummy")]})]
        else:
            base, tag = vlan_of(shape.parent)
            below = interfaces.index_of(rtnl, base) if tag else 0
            if not below:
                raise NotFound(
                    f'interface "{shape.parent}"',
                    "the host has none of that name",
                    "see: ip link; name one with --opt parent=",
                )
            data = {"attrs": [("IFLA_VLAN_ID", tag)]}
            vlan = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", data)]}
            attributes = [("IFLA_LINK", below), ("IFLA_LINKINFO", vlan)]
        try:
            rtnl.ask((netlink.NEWLINK, ADD, netlink.link(shape.parent, attributes=attributes), f"link {shape.parent}"))
        except FileExistsError:
            return
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            kind = "dummy" if shape.made else "VLAN"
            raise FailedPrecondition(
                f'interface "{shape.parent}"',
                f"this kernel has no {kind} interfaces",
                "name a parent with --opt parent=",
            ) from None
        alias = netlink.link(shape.parent, attributes=[("IFLA_IFALIAS", self._alias)])
        rtnl.ask((netlink.SETLINK, 0, alias, f"link {shape.parent}"))

    def _is_ours(self, rtnl: Rtnl, index: int) -> bool:
        return any(
            one["index"] == index and one.get_attr("IFLA_IFALIAS") == self._alias
            for one in rtnl.dump(netlink.GETLINK, netlink.link())
        )

    def tidy(self, keep: Collection[str]) -> None:
        """Takes away the parents that were made here, but for those in keep."""
        with Rtnl() as rtnl:
            for one in rtnl.dump(netlink.GETLINK, netlink.link()):
                if one.get_attr("IFLA_IFALIAS") == self._alias and one.get_attr("IFLA_IFNAME") not in keep:
                    try:
                        rtnl.ask((netlink.DELLINK, 0, netlink.link(index=one["index"]), "link"))
                    except OSError as error:
                        if error.errno != errno.ENODEV:
                            raise

    # containers

    def plug(self, place: StoredEndpoint, shape: MacvlanShape, parent: int) -> None:
        """Makes the link right in the container's namespace. FailedPrecondition when that is the host's."""
        request = place.reservation.request
        data = {"attrs": [("IFLA_MACVLAN_MODE", shape.mode)]}
        kind = {"attrs": [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", data)]}
        attributes: list[tuple[str, Any]] = [("IFLA_LINK", parent), ("IFLA_LINKINFO", kind)]
        if shape.mode != "passthru":  # there the parent's own address is the container's
            attributes.append(("IFLA_ADDRESS", place.mac))
        if shape.mtu:
            attributes.append(("IFLA_MTU", shape.mtu))
        with sandboxes.namespace(self._context.shim, request.sandbox_id) as netns, Rtnl() as rtnl:
            wish = netlink.link(request.interface, attributes=[("IFLA_NET_NS_FD", netns), *attributes])
            self._add(rtnl, wish, shape, place)
        with sandboxes.inside(self._context.shim, request.sandbox_id) as rtnl:
            gateways = () if shape.made else shape.gateways
            interfaces.furnish(rtnl, request.interface, place.reservation.addresses, gateways, six=shape.six)

    def _add(self, rtnl: Rtnl, wish: Any, shape: MacvlanShape, place: StoredEndpoint) -> None:
        step = (netlink.NEWLINK, ADD, wish, f"link {place.reservation.request.interface}")
        try:
            try:
                rtnl.ask(step)
            except FileExistsError:  # of an attach before this one that was broken off
                self.unplug(place)
                rtnl.ask(step)
        except FileExistsError:
            raise InUse(f'interface "{step[3][5:]}"', "the sandbox has one of that name already") from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InUse(
                    f'interface "{shape.parent}"',
                    "is in use otherwise: as part of a bridge, or by a network in another mode",
                ) from None
            if error.errno == errno.EINVAL and shape.mode == "passthru":
                raise InUse(f'interface "{shape.parent}"', 'mode "passthru" is for one container at a time') from None
            if error.errno == errno.EINVAL:
                raise Invalid(f'interface "{shape.parent}"', "can't carry macvlan links") from None
            raise

    def unplug(self, place: StoredEndpoint) -> None:
        """Takes the link out of a container that goes on; with a namespace that is gone the link is too."""
        request = place.reservation.request
        try:
            with sandboxes.namespace(self._context.shim, request.sandbox_id):
                rtnl = sandboxes.inside(self._context.shim, request.sandbox_id)
        except Error:  # no sandbox, or no namespace of its own
            return
        with rtnl:
            for one in rtnl.dump(netlink.GETLINK, netlink.link()):
                info = one.get_attr("IFLA_LINKINFO")
                kind = info.get_attr("IFLA_INFO_KIND") if info else ""
                if one.get_attr("IFLA_IFNAME") == request.interface and kind == "macvlan":
                    rtnl.ask((netlink.DELLINK, 0, netlink.link(index=one["index"]), f"link {request.interface}"))

    def differs(self, place: StoredEndpoint, shape: MacvlanShape) -> str:
        """What is not as it was made, in words."""
        with Rtnl() as rtnl:
            if not interfaces.index_of(rtnl, shape.parent):
                return f'the parent interface "{shape.parent}" is gone'
        request = place.reservation.request
        with sandboxes.inside(self._context.shim, request.sandbox_id) as rtnl:
            return interfaces.lacking(rtnl, request.interface, place.reservation.addresses)

    def mac(self, place: StoredEndpoint, shape: MacvlanShape) -> str:
        """The hardware address, which in mode "passthru" is the parent's."""
        if shape.mode != "passthru":
            return place.mac
        with Rtnl() as rtnl:
            for one in rtnl.dump(netlink.GETLINK, netlink.link()):
                if one.get_attr("IFLA_IFNAME") == shape.parent:
                    return str(one.get_attr("IFLA_ADDRESS"))
        return place.mac


def vlan_of(name: str) -> tuple[str, int]:
    """("eth0", 10) for "eth0.10"; 0 where it names no VLAN."""
    base, dot, tag = name.rpartition(".")
    number = int(tag) if dot and tag.isascii() and tag.isdecimal() else 0
    return (base, number) if base and 0 < number < 4095 else (name, 0)
