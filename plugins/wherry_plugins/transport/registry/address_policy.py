"""How near an address is, and whom a registry may send us to.

A registry out there that names http://169.254.169.254/ or http://localhost:2375/ as its token server or in a redirect would
have us ask, from inside, what it can't ask itself.
"""

from __future__ import annotations

import ipaddress
import socket
from enum import IntEnum


class AddressPolicy(IntEnum):
    """The nearer, the more is lost to whoever gets us to ask there."""

    PUBLIC = 0
    PRIVATE = 1
    LINK_LOCAL = 2
    LOOPBACK = 3

    def __str__(self) -> str:
        return {0: "public", 1: "private", 2: "link-local", 3: "loopback"}[self.value]


def reach_of(address: str) -> AddressPolicy:
    """Of an IP address in text; one that holds an IPv4 address counts as that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    if ip.is_loopback or ip.is_unspecified:  # 0.0.0.0 leads to this machine as well
        return AddressPolicy.LOOPBACK
    if ip.is_link_local or ip.is_multicast:
        return AddressPolicy.LINK_LOCAL
    return AddressPolicy.PUBLIC if ip.is_global else AddressPolicy.PRIVATE


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def nearest(host: str, port: int) -> AddressPolicy:
    """The nearest of all addresses that a name has now. OSError where it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return max(reach_of(str(entry[4][0])) for entry in found)


def may_lead(source: AddressPolicy, target: AddressPolicy) -> bool:
    """Whether a server at source may send us to target: out, or to its like; from this machine also into the private networks."""
    return target in (AddressPolicy.PUBLIC, source) or (
        source == AddressPolicy.LOOPBACK and target == AddressPolicy.PRIVATE
    )


def is_loopback(host: str) -> bool:
    """Whether a host's name says by itself that it is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return reach_of(host) == AddressPolicy.LOOPBACK
    except ValueError:
        return False
