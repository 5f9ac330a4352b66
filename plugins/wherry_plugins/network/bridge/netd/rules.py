"""The rules of all our bridges as nft text: one table, whose chains never change; networks and ports are elements of its sets.

``table`` is the whole, ``of_network`` and ``of_endpoint`` are what one network or one container adds to it. A network costs a few
elements and a published port one or two, whatever there is already; a packet costs the same look-ups however many there are.
"""

from __future__ import annotations

import ipaddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from wherry_plugins.network.bridge.netd.state import Endpoint, Network

    Element = tuple[str, str]

#: set or map -> its type. Those of intervals hold subnets.
SETS: dict[str, str] = {
    "bridges": "type ifname;",
    "internal": "type ifname;",
    "open": "type ifname;",
    "own4": "type ifname . ipv4_addr; flags interval;",
    "own6": "type ifname . ipv6_addr; flags interval;",
    "masquerade4": "type ipv4_addr; flags interval;",
    "masquerade6": "type ipv6_addr; flags interval;",
    "loopback": "type inet_proto . inet_service;",
}
MAPS: dict[str, str] = {
    "within": "type ifname . ifname : verdict;",
    "at4": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
    "at6": "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;",
    "any4": "type inet_proto . inet_service : ipv4_addr . inet_service;",
    "any6": "type inet_proto . inet_service : ipv6_addr . inet_service;",
}

#: chain -> its lines. Where one decides, the reason stands behind it.
CHAINS: dict[str, str] = {
    # before connection tracking: what is published on loopback is reached from loopback alone, even where somebody has
    # set route_localnet (a neighbour on the link may send to 127.0.0.1 by our hardware address)
    "guard": """
        type filter hook prerouting priority raw; policy accept;
        iifname "lo" accept
        ip daddr 127.0.0.0/8 meta l4proto . th dport @loopback drop
        ip6 daddr ::1 meta l4proto . th dport @loopback drop""",
    # a container speaks for its own network; "::" and link-local addresses are those of neighbour discovery
    "senders": """
        type filter hook prerouting priority mangle; policy accept;
        ct state established,related accept
        iifname != @bridges accept
        meta nfproto ipv4 iifname . ip saddr != @own4 drop
        ip6 saddr { ::, fe80::/10 } accept
        meta nfproto ipv6 iifname . ip6 saddr != @own6 drop""",
    "forward": """
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        oifname @bridges goto inward
        iifname @internal drop""",
    # into a bridge of ours: its own traffic, what was published, and open networks among each other
    "inward": """
        iifname @internal goto enclosed
        oifname @internal goto enclosed
        ct status dnat accept
        iifname . oifname vmap @within
        iifname @open oifname @open accept
        drop""",
    "enclosed": """
        iifname . oifname vmap @within
        drop""",
    "incoming": """
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local goto publish""",
    # from processes of the host; what they send to loopback is taken by netd's own listeners
    "outgoing": """
        type nat hook output priority dstnat; policy accept;
        fib daddr type local goto publish""",
    # Protocols and the shape of the target are said in full: releases of nft from 1.0.2 to 1.0.9 do not all infer them from the map.
    "publish": """
        ip daddr 127.0.0.0/8 return
        ip6 daddr ::1 return
        meta l4proto { tcp, udp } dnat ip addr . port to ip daddr . meta l4proto . th dport map @at4
        meta l4proto { tcp, udp } dnat ip addr . port to meta l4proto . th dport map @any4
        meta l4proto { tcp, udp } dnat ip6 addr . port to ip6 daddr . meta l4proto . th dport map @at6
        meta l4proto { tcp, udp } dnat ip6 addr . port to meta l4proto . th dport map @any6""",
    # to a neighbour by a published port: the answer must come back this way to be translated
    "leaving": """
        type nat hook postrouting priority srcnat; policy accept;
        ct status dnat oifname . ip saddr @own4 masquerade
        ct status dnat oifname . ip6 saddr @own6 masquerade
        oifname . ip saddr @own4 accept
        oifname . ip6 saddr @own6 accept
        ip saddr @masquerade4 masquerade
        ip6 saddr @masquerade6 masquerade""",
}


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def of_network(network: Network) -> list[Element]:
    """(set, element) for each element that a network has."""
    name = f'"{network.interface}"'
    found = [("bridges", name), ("within", f"{name} . {name} : {'accept' if network.icc else 'drop'}")]
    if network.internal:
        found.append(("internal", name))
    elif not network.isolated:
        found.append(("open", name))
    for subnet in network.subnets:
        found.append((f"own{_version(subnet)}", f"{name} . {subnet}"))
        if network.masquerade and not network.internal:
            found.append((f"masquerade{_version(subnet)}", subnet))
    return found


def of_endpoint(endpoint: Endpoint) -> list[Element]:
    """(set, element) for each element that a container's place in a network has: its published ports."""
    found: list[Element] = []
    for port in endpoint.ports:
        key = f"{port.protocol} . {port.host_port}"
        host = ipaddress.ip_address(port.host_ip) if port.host_ip else None
        if host is None or host.is_unspecified or host.is_loopback:
            found.append(("loopback", key))
        for address in endpoint.addresses:
            version = _version(address)
            target = f"{address} . {port.container_port}"
            if host is None or (host.is_unspecified and host.version == version):
                found.append((f"any{version}", f"{key} : {target}"))
            elif host.version == version and not host.is_loopback and not host.is_unspecified:
                found.append((f"at{version}", f"{host} . {key} : {target}"))
    return found


def _elements(elements: list[str]) -> str:
    return f"        elements = {{ {', '.join(elements)} }}\n" if elements else ""


def _by_set(elements: Iterable[Element]) -> dict[str, list[str]]:
    """Each once."""
    held: dict[str, dict[str, None]] = {}
    for where, element in elements:
        held.setdefault(where, {})[element] = None
    return {where: list(found) for where, found in held.items()}


def table(name: str, elements: Iterable[Element]) -> str:
    """Commands that make the table as it should be, whatever it was, in one transaction."""
    held = _by_set(elements)
    text = f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n"
    for kind, group in (("set", SETS), ("map", MAPS)):
        for which, type in group.items():
            text += f"    {kind} {which} {{\n        {type}\n{_elements(held.get(which, []))}    }}\n"
    for chain, lines in reversed(CHAINS.items()):  # those that others go to come first
        text += f"    chain {chain} {{{lines}\n    }}\n"
    return text + "}\n"


def add(name: str, elements: Iterable[Element]) -> str:
    """Commands that add elements; those that are there already do no harm."""
    return _changes("add", name, elements)


def delete(name: str, elements: Iterable[Element]) -> str:
    """Commands that delete elements; one that is missing fails them all."""
    keys = [(where, element.rpartition(" : ")[0] if where in MAPS else element) for where, element in elements]
    return _changes("delete", name, keys)


def _changes(verb: str, name: str, elements: Iterable[Element]) -> str:
    return "".join(
        f"{verb} element inet {name} {where} {{ {', '.join(found)} }}\n" for where, found in _by_set(elements).items()
    )


def drop(name: str) -> str:
    """Commands that end the table, which may be gone."""
    return f"table inet {name}\ndelete table inet {name}\n"
