"""The messages of routing netlink that a container's start is made of, written out (rtnetlink(7), linux/if_link.h, linux/rtnetlink.h).

Each is the body of a request for ``netlink.Rtnl.ask``, some tens of bytes. What is rarer is written by pyroute2, see ``netlink``.
"""

from __future__ import annotations

import socket
import struct

from wherry.kit.networks.netlink import UP, attribute, nest, text, u32

_ADDRESS, _IFNAME, _MTU, _MASTER, _LINKINFO, _AF_SPEC, _NET_NS_FD = 1, 3, 4, 10, 18, 26, 28  # IFLA_*
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5  # IFLA_INFO_*
_PEER = 1  # VETH_INFO_PEER
_HAIRPIN, _ISOLATED = 4, 33  # IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED
_ADDR_GEN_MODE, _NONE = 8, b"\1"  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
_IFA_ADDRESS, _IFA_LOCAL, _NODAD = 1, 2, 0x02
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6
_MAIN, _STATIC, _UNIVERSE, _UNICAST = 254, 4, 0, 1


def _link(index: int = 0, *, up: bool = False) -> bytes:
    """An ifinfomsg."""
    flags = UP if up else 0
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _mtu(mtu: int) -> bytes:
    return u32(_MTU, mtu) if mtu else b""


def veth(outer: str, bridge: int, inner: str, mac: str, netns: int, mtu: int) -> bytes:
    """RTM_NEWLINK: a pair, of which outer is up and a port of the bridge with that index, and inner is in the network namespace of
    that descriptor, with that hardware address. mtu in bytes, 0: the kernel's own."""
    peer = _link() + text(_IFNAME, inner) + attribute(_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    peer += u32(_NET_NS_FD, netns) + _mtu(mtu)
    info = nest(_LINKINFO, text(_KIND, "veth") + nest(_DATA, nest(_PEER, peer)))
    return _link(up=True) + text(_IFNAME, outer) + _mtu(mtu) + u32(_MASTER, bridge) + info


def port(outer: str, *, hairpin: bool, isolated: bool) -> bytes:
    """RTM_NEWLINK: what a bridge is to do at a port (bridge(8)). hairpin: a frame may go back to where it came from; isolated: frames
    of other such ports do not go there."""
    data = attribute(_HAIRPIN, bytes([hairpin])) + attribute(_ISOLATED, bytes([isolated]))
    return _link() + text(_IFNAME, outer) + nest(_LINKINFO, text(_SLAVE_KIND, "bridge") + nest(_SLAVE_DATA, data))


def no_link_local(index: int) -> bytes:
    """RTM_SETLINK: the link gets no IPv6 address by itself."""
    return _link(index) + nest(_AF_SPEC, nest(socket.AF_INET6, attribute(_ADDR_GEN_MODE, _NONE)))


def up(index: int) -> bytes:
    """RTM_SETLINK."""
    return _link(index, up=True)


def address(index: int, cidr: str) -> bytes:
    """RTM_NEWADDR. An IPv6 address is usable at once (IFA_F_NODAD): who gives it out knows that it is the only one."""
    ip, _, prefix = cidr.partition("/")
    family = _family(ip)
    packed = socket.inet_pton(family, ip)
    head = struct.pack("=BBBBI", family, int(prefix), _NODAD if family == socket.AF_INET6 else 0, _UNIVERSE, index)
    return head + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def route(gateway: str, index: int, metric: int) -> bytes:
    """RTM_NEWROUTE: the default route by a gateway, in the main table. metric 0: the kernel's own."""
    family = _family(gateway)
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _MAIN, _STATIC, _UNIVERSE, _UNICAST, 0)
    found = head + attribute(_RTA_GATEWAY, socket.inet_pton(family, gateway)) + u32(_RTA_OIF, index)
    return found + (u32(_RTA_PRIORITY, metric) if metric else b"")


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


__all__ = ["address", "no_link_local", "port", "route", "up", "veth"]
