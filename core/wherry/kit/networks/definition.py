"""From what a user says of a network to all that it is: subnets, gateways, ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import evolve

from wherry.api import AttachRequest, InUse, Invalid, NetworkConfig
from wherry.kit.networks import addresses as ip

#: Whose addresses mean the machine itself or its link, whoever asks (RFC 1122, RFC 4291).
_LOCAL = {4: ip.subnet("127.0.0.0/8"), 6: ip.subnet("fe80::/10")}


def check_addresses(config: NetworkConfig, request: AttachRequest) -> None:
    """Invalid unless each wished address is a host's in one of the network's subnets, at most one in each."""
    wishes: set[ip.Network] = set()
    for text in request.addresses:
        wish = ip.address(text)
        subnet = next((one for one in map(ip.subnet, config.subnets) if wish in one), None)
        if subnet is None:
            raise Invalid(
                f'address "{text}"',
                f'is not in network "{config.name}"',
                f"choose one of {', '.join(config.subnets)}",
            )
        low, high = ip.hosts(subnet)
        if not low <= int(wish) <= high:
            raise Invalid(f'address "{text}"', f"is not the address of a host in {subnet}")
        if subnet in wishes:
            raise Invalid(f'address "{text}"', f"is the second one in {subnet}", "a container has one in each subnet")
        wishes.add(subnet)


def fill(
    config: NetworkConfig,
    *,
    pools: Mapping[str, int],
    others: Sequence[tuple[str, ip.Network]],
    taken: Callable[[], Iterable[ip.Network]],
    seed: str,
) -> NetworkConfig:
    """The config with every default filled in. others: the subnets of our networks, by their names; taken: what the host has
    routes to, asked only where a subnet has to be chosen; seed: of the IPv6 prefix. Invalid and InUse say what does not fit."""
    subnets = [ip.subnet(text) for text in config.subnets]
    _check(subnets, others)
    versions = [one.version for one in subnets]
    if versions.count(4) > 1 or versions.count(6) > 1:
        raise Invalid(f'network "{config.name}"', "has two subnets of one family", "give one of IPv4 and one of IPv6")
    if not subnets or (config.ipv6 and versions == [6] and not config.gateways):
        subnets.insert(0, ip.choose(pools, [*taken(), *(other for _name, other in others)]))
    if config.ipv6 and 6 not in versions:
        subnets.append(ip.unique_local(seed))
    return evolve(
        config,
        subnets=tuple(map(str, subnets)),
        gateways=_gateways(config, subnets),
        ip_ranges=_ranges(config, subnets),
        ipv6=any(one.version == 6 for one in subnets),
    )


def _check(subnets: Sequence[ip.Network], others: Sequence[tuple[str, ip.Network]]) -> None:
    for one in subnets:
        if not one.prefixlen or one.is_multicast or one.overlaps(_LOCAL[one.version]):
            raise Invalid(
                f'subnet "{one}"', "is not for the addresses of hosts", "take a private one, such as 10.9.0.0/24"
            )
        for name, other in others:
            if ip.overlap(one, other):
                raise InUse(f'subnet "{one}"', f'overlaps {other} of network "{name}"')
        if one.num_addresses < 4:
            raise Invalid(f'subnet "{one}"', "has no room for a gateway and a container")


def _gateways(config: NetworkConfig, subnets: Sequence[ip.Network]) -> tuple[str, ...]:
    """One of each subnet, in its order."""
    given = {text: ip.address(text, what="gateway") for text in config.gateways}
    found = []
    for one in subnets:
        inside = [text for text, gateway in given.items() if gateway in one]
        if len(inside) > 1:
            raise Invalid(f'gateway "{inside[1]}"', f"is the second one of {one}")
        low, high = ip.hosts(one)
        if inside and not low <= int(given[inside[0]]) <= high:
            raise Invalid(f'gateway "{inside[0]}"', f"is not the address of a host in {one}")
        found.append(str(given.pop(inside[0]) if inside else ip.first_host(one)))
    if given:
        raise Invalid(f'gateway "{min(given)}"', "is in none of the subnets")
    return tuple(found)


def _ranges(config: NetworkConfig, subnets: Sequence[ip.Network]) -> tuple[str, ...]:
    for text in config.ip_ranges:
        one = ip.subnet(text, what="ip range")
        if not any(ip.overlap(one, subnet) and one.prefixlen >= subnet.prefixlen for subnet in subnets):
            raise Invalid(f'ip range "{text}"', "is in none of the subnets")
    return config.ip_ranges


__all__ = ["check_addresses", "fill"]
