"""The driver's table in the config file, and the options of a network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from wherry.api import Invalid, NetworkConfig

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


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError("is neither true nor false")
    return text.lower() in {"true", "1"}


def _mtu(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 68 <= number <= 65535:
        raise ValueError("is not a number of bytes from 68 to 65535")
    return number


def _interface(text: str) -> str:
    """Less than the kernel takes: it replaces a "%d", and nft reads a "*" as whatever follows."""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}", text):
        raise ValueError("is not the name of an interface: at most 15 letters, digits, and then also _ . and -")
    return text


_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "mtu": ("mtu", _mtu),
    "interface": ("interface", _interface),
    "icc": ("icc", _flag),
    "masquerade": ("masquerade", _flag),
    "isolate": ("isolate", _flag),
    "names": ("names", _flag),
    # as Docker's users write them (docker network create, "Bridge driver options")
    "com.docker.network.driver.mtu": ("mtu", _mtu),
    "com.docker.network.bridge.name": ("interface", _interface),
    "com.docker.network.bridge.enable_icc": ("icc", _flag),
    "com.docker.network.bridge.enable_ip_masquerade": ("masquerade", _flag),
}


def options_of(config: NetworkConfig) -> BridgeOptions:
    """Invalid for an unknown option or a wrong value, with what is near."""
    found: dict[str, Any] = {}
    for key, text in config.options.items():
        if key not in _READ:
            near = difflib.get_close_matches(key, _READ, 1) or [", ".join(key for key in _READ if "." not in key)]
            raise Invalid(f'option "{key}"', "a bridge network has no such option", f"did you mean {near[0]}?")
        name, read = _READ[key]
        try:
            found[name] = read(text)
        except ValueError as error:
            raise Invalid(f'option "{key}={text}"', str(error)) from None
    return BridgeOptions(**found)
