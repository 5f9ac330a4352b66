"""The interface of a container, and what the host has already, over a conversation by ``netlink``."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Sequence

from wherry.kit.networks import addresses as ip
from wherry.kit.networks import messages, netlink
from wherry.kit.networks.netlink import ADD, Rtnl


def index_of(rtnl: Rtnl, name: str) -> int:
    """0 when there is no such link."""
    try:
        return rtnl.index(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return 0


def without_link_local(index: int) -> tuple[int, int, bytes, str]:
    """The request for no IPv6 address by itself: a network without IPv6 has none, not even between neighbours. A kernel without IPv6
    refuses it, which does no harm."""
    return netlink.SETLINK, 0, messages.no_link_local(index), ""


def furnish(rtnl: Rtnl, interface: str, addresses: Sequence[str], gateways: Sequence[str], *, six: bool) -> None:
    """Brings an interface up with its addresses (CIDR) and a default route by each gateway. six: it has IPv6."""
    index = rtnl.index(interface)
    number = int("".join(letter for letter in interface if letter.isdigit()) or 0)
    steps: list[tuple[int, int, bytes, str]] = [] if six else [without_link_local(index)]
    steps.append((netlink.SETLINK, 0, messages.up(index), f"link {interface}"))
    for cidr in addresses:
        steps.append((netlink.NEWADDR, ADD, messages.address(index, cidr), f"address {cidr}"))
    for gateway in gateways:
        # The first network's route comes first; those of others step in when it goes. IPv6 counts from 1024 (ip-route(8)).
        metric = number + 1024 if ":" in gateway else number
        steps.append((netlink.NEWROUTE, ADD, messages.route(gateway, index, metric), f"route by {gateway}"))
    rtnl.ask(*steps)


def lacking(rtnl: Rtnl, interface: str, addresses: Collection[str]) -> str:
    """What of it is missing, in words; "" when all is there."""
    index = index_of(rtnl, interface)
    if not index:
        return f'it has no interface "{interface}"'
    there = {
        f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}"
        for one in rtnl.dump(netlink.GETADDR, netlink.address())
        if one["index"] == index
    }
    lost = next((cidr for cidr in addresses if cidr not in there), "")
    return f'its interface "{interface}" lost the address {lost}' if lost else ""


def hosts_own() -> str:
    """The address by which this network namespace is seen outside, IPv4 before IPv6; "" where no route leads there."""
    for family, somewhere in ((socket.AF_INET, "192.88.99.1"), (socket.AF_INET6, "2001::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect((somewhere, 9))  # sends nothing
            return str(sock.getsockname()[0])
    return ""


def taken(rtnl: Rtnl, besides: str = "") -> list[ip.Network]:
    """Subnets that a namespace has addresses of or routes to, but for those by the link "besides"."""
    found: list[ip.Network] = []
    own = index_of(rtnl, besides) if besides else 0
    for message in rtnl.dump(netlink.GETADDR, netlink.address()):
        text = message.get_attr("IFA_ADDRESS")
        if text and (message["index"] != own or not own):
            found.append(ip.around(text, message["prefixlen"]))
    for message in rtnl.dump(netlink.GETROUTE, netlink.route()):
        text = message.get_attr("RTA_DST")
        if text and message["dst_len"] and (message.get_attr("RTA_OIF") != own or not own) and message["type"] == 1:
            found.append(ip.around(text, message["dst_len"]))
    return found


__all__ = ["furnish", "hosts_own", "index_of", "lacking", "taken", "without_link_local"]
