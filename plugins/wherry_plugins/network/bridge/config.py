"""The driver's table in the config file, and the options of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

from wherry.api import NetworkConfig
from wherry.kit import options

_POOLS = {
    "172.17.0.0/16": 16, "172.18.0.0/15": 16, "172.20.0.0/14": 16, "172.24.0.0/13": 16, "192.168.0.0/16": 20,
}  # fmt: skip


@frozen
class BridgeConfig:
    """pools: where subnets come from that nobody names, each key cut into subnets of its value's prefix length.

    subnet, ipv6 and mtu are those of the built-in network "bridge": CIDR, "" being one of the pools; whether it has IPv6 too;
    bytes, 0 being the kernel's 1500, which is also what other networks have without an option "mtu".
    """

    pools: Mapping[str, int] = field(factory=lambda: dict(_POOLS))
    subnet: str = ""
    ipv6: bool = False
    mtu: int = 0


@frozen
class BridgeOptions:
    """A network's options (``wherry network create --opt KEY=VALUE``).

    mtu in bytes; interface: the name of the bridge; icc: containers may speak to each other; masquerade: what leaves has the
    host's address; isolate: no traffic with other networks; names: a resolver for the names of containers.
    """

    mtu: int = 0
    interface: str = ""
    icc: bool = True
    masquerade: bool = True
    isolate: bool = True
    names: bool = True


def _interface(text: str) -> str:
    """Less than the kernel takes: it replaces a "%d", and nft reads a "*" as whatever follows."""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}", text):
        raise ValueError("is not the name of an interface: at most 15 letters, digits, and then also _ . and -")
    return text


_OPTIONS: dict[str, options.Reader] = {
    "mtu": options.mtu,
    "interface": _interface,
    **dict.fromkeys(("icc", "masquerade", "isolate", "names"), options.flag),
}
#: As Docker's users write them (docker network create, "Bridge driver options").
_DOCKER = {
    "com.docker.network.driver.mtu": "mtu",
    "com.docker.network.bridge.name": "interface",
    "com.docker.network.bridge.enable_icc": "icc",
    "com.docker.network.bridge.enable_ip_masquerade": "masquerade",
}


def options_of(config: NetworkConfig) -> BridgeOptions:
    """Invalid for an unknown option or a wrong value."""
    return BridgeOptions(**options.read_options(config.options, _OPTIONS, 'the network driver "bridge"', _DOCKER))
