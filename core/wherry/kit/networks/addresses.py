"""Subnets and addresses: which ones a network gets, and which one a container gets in it. Pure functions."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping

from wherry.api import InUse, Invalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def subnet(text: str, *, what: str = "subnet") -> Network:
    """A CIDR without host bits. Invalid for anything else."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Invalid(f'{what} "{text}"', "is not CIDR", "write it like 10.1.0.0/24 or fd00:1::/64") from None
    raise Invalid(f'{what} "{text}"', "has bits beyond its prefix", f"did you mean {meant}?")


def address(text: str, *, what: str = "address") -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f'{what} "{text}"', "is not an IP address") from None


def pooled(pools: Mapping[str, int]) -> Iterator[Network]:
    """Every subnet of the default pools, in order: each key is cut into subnets of its value's prefix length."""
    for base, size in pools.items():
        yield from subnet(base, what="pool").subnets(new_prefix=size)


def choose(pools: Mapping[str, int], taken: Iterable[Network]) -> Network:
    """The first subnet of the pools that overlaps none of taken. InUse when there is none."""
    used = list(taken)
    for candidate in pooled(pools):
        if not any(overlap(candidate, other) for other in used):
            return candidate
    raise InUse(
        "subnets", "every one of the default pools is taken", "give one with --subnet, or set more pools in the config"
    )


def unique_local(seed: str) -> Network:
    """An IPv6 /64 of RFC 4193 whose 56 free bits come from seed."""
    digest = hashlib.sha256(seed.encode("utf-8", "surrogateescape")).digest()
    return ipaddress.ip_network((b"\xfd" + digest[:7] + bytes(8), 64))


def around(text: str, prefix: int) -> Network:
    """The network of an address with its prefix length."""
    return ipaddress.ip_network(f"{text}/{prefix}", strict=False)


def overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def hosts(network: Network) -> tuple[int, int]:
    """The first and last address for hosts, as numbers: without the network's own and, for IPv4, the broadcast address.

    A /31 and a /127 have two hosts (RFC 3021, RFC 6164), a /32 and a /128 one."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.num_addresses <= 2:
        return first, last
    return first + 1, last - 1 if network.version == 4 else last


def first_host(network: Network) -> Address:
    return type(network.network_address)(hosts(network)[0])


def next_free(network: Network, within: Network, after: int, taken: Collection[int]) -> int | None:
    """The first free host address of ``within`` (a part of network) above after, going round; None when all are taken."""
    low, high = hosts(network)
    low, high = max(low, int(within.network_address)), min(high, int(within.broadcast_address))
    start = after + 1 if low <= after < high else low
    for run in (range(start, high + 1), range(low, start)):
        for number in run:
            if number not in taken:
                return number
    return None


def mac_of(number: Address) -> str:
    """A locally administered hardware address that follows from the IP address, so that no neighbour's table goes stale."""
    tail = number.packed if number.version == 4 else hashlib.sha256(number.packed).digest()[:4]
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + tail)


def check_mac(text: str) -> str:
    """In lower case with colons. Invalid unless it is a unicast hardware address of 48 bits."""
    parts = text.lower().replace("-", ":").split(":")
    try:
        numbers = [int(part, 16) for part in parts if len(part) == 2]
    except ValueError:
        numbers = []
    if len(parts) != 6 or len(numbers) != 6 or numbers[0] & 1 or not any(numbers):
        raise Invalid(f'mac address "{text}"', "is not a unicast hardware address", "write it like 02:42:ac:11:00:02")
    return ":".join(f"{number:02x}" for number in numbers)


__all__ = [
    "Address",
    "Network",
    "address",
    "around",
    "check_mac",
    "choose",
    "first_host",
    "hosts",
    "mac_of",
    "next_free",
    "overlap",
    "pooled",
    "subnet",
    "unique_local",
]
