"""Network configuration lists: what a file says, and what the engine's own networks are written as.

CNI specification 1.1, section 1, "Network configuration format".
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
from attrs import frozen

from wherry.api import Invalid, NetworkConfig

#: Oldest first; earlier ones have another form of results.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_OPTIONS = ("bridge", "conflist", "mtu")
_IFNAME = re.compile(r"[^/\s:]{1,15}\Z")


@frozen
class Conflist:
    """A list. version is the one that is spoken with its plugins; source names its file, "" for a network of the engine's."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""

    def speaks(self, version: str) -> bool:
        """Whether that version or a later one is spoken."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)

    def offers(self, capability: str) -> bool:
        """Whether some plugin declares that capability."""
        return any(plugin.get("capabilities", {}).get(capability) is True for plugin in self.plugins)

    def ranges(self) -> Iterator[tuple[str, str]]:
        """(subnet, gateway) of what its address management says, where that is written in it."""
        for plugin in self.plugins:
            ipam = plugin.get("ipam") or {}
            for item in (ipam, *(item for group in ipam.get("ranges") or () for item in group)):
                if isinstance(item, Mapping) and item.get("subnet"):
                    yield str(item["subnet"]), str(item.get("gateway", ""))

    def described(self) -> NetworkConfig:
        """As ``list`` has it."""
        ranges = tuple(self.ranges())
        return NetworkConfig(
            self.name,
            subnets=tuple(subnet for subnet, _ in ranges),
            gateways=tuple(gateway for _, gateway in ranges if gateway),
            options={"conflist": self.source, "plugins": ",".join(str(plugin["type"]) for plugin in self.plugins)},
        )


def parse(data: Any, source: str = "") -> Conflist:
    """A list, or a lone plugin's configuration, from JSON. Invalid says what is wrong with it."""
    what = f'CNI configuration "{source}"' if source else "CNI configuration"
    if not isinstance(data, dict):
        raise Invalid(what, "is no JSON object")
    if "plugins" not in data and "type" in data:  # the form before lists
        data = {**{key: data[key] for key in ("cniVersion", "name") if key in data}, "plugins": [data]}
    name, plugins = data.get("name"), data.get("plugins")
    if not isinstance(name, str) or not NAME.match(name):
        raise Invalid(what, f'has no usable name: "{name}"')
    if not isinstance(plugins, list) or not plugins:
        raise Invalid(what, "has no plugins")
    for plugin in plugins:
        type = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(type, str) or not type or "/" in type or type in {".", ".."}:
            raise Invalid(what, f'a plugin has no usable type: "{type}"')
        if not isinstance(plugin.get("capabilities", {}), dict):
            raise Invalid(what, f'the capabilities of plugin "{type}" are no object')
    said = data.get("cniVersions") or [data.get("cniVersion", "")]
    known = [version for version in VERSIONS if version in said]
    if not known:
        raise Invalid(what, f"is for CNI {', '.join(map(str, said))}", f"known are {', '.join(VERSIONS)}")
    return Conflist(
        name,
        known[-1],
        tuple(plugins),
        disable_check=_flag(data, "disableCheck"),
        disable_gc=_flag(data, "disableGC"),
        source=source,
    )


def _flag(data: Mapping[str, Any], key: str) -> bool:
    """A boolean, which some write as a string."""
    return data.get(key) in (True, "true", "True")


def stored(made: Conflist) -> dict[str, Any]:
    """As JSON, for a record; ``from_stored`` reads it."""
    return attrs.asdict(made, recurse=False)


def from_stored(data: Mapping[str, Any]) -> Conflist:
    return Conflist(**{**data, "plugins": tuple(data["plugins"])})


def load(directories: Iterable[str]) -> tuple[list[Conflist], list[str]]:
    """(lists, what is wrong with the other files). Of two with one name the first counts, by directory and name of the file."""
    found: dict[str, Conflist] = {}
    wrong = []
    for directory in directories:
        for path in sorted(Path(directory).glob("*")):
            if path.suffix not in {".conflist", ".conf", ".json"}:
                continue
            try:
                made = read(path)
            except Invalid as error:
                wrong.append(str(error))
                continue
            found.setdefault(made.name, made)
    return list(found.values()), wrong


def read(path: Path) -> Conflist:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise Invalid(f'CNI configuration "{path}"', f"can't be read: {error}") from None


# networks of the engine's own


def generate(wish: NetworkConfig, data_dir: Path, taken: Iterable[str]) -> tuple[NetworkConfig, Conflist]:
    """The wish with its defaults filled in, and a list for it. taken: subnets that it must not overlap. Invalid."""
    what = f'network "{wish.name}"'
    if not NAME.match(wish.name):
        raise Invalid(what, "not a name", "use letters, digits, _ . and -")
    unknown = sorted(set(wish.options) - set(_OPTIONS))
    if unknown:
        raise Invalid(what, f'no option "{unknown[0]}"', f"there are {', '.join(_OPTIONS)}")
    if "conflist" in wish.options:
        return _given(wish, what)
    subnets = tuple(_subnet(text, what) for text in wish.subnets) or _choose(wish, taken, what)
    gateways = _gateways(wish, subnets, what)
    ranges = _ranges(wish, subnets, gateways, what)
    bridge = wish.options.get("bridge") or f"cni-{uuid4().hex[:8]}"
    if not _IFNAME.match(bridge):
        raise Invalid(what, f'"{bridge}" is no name of an interface')
    mtu = wish.options.get("mtu", "")
    if mtu and not mtu.isdecimal():
        raise Invalid(what, f'mtu "{mtu}" is no number')
    first: dict[str, Any] = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": not wish.internal,
        "hairpinMode": True,
        **({"mtu": int(mtu)} if mtu else {}),
        "capabilities": {"ips": True, "mac": True},
        "ipam": {
            "type": "host-local",
            "dataDir": str(data_dir),
            "ranges": [[item] for item in ranges],
            "routes": []
            if wish.internal
            else [{"dst": "::/0" if net.version == 6 else "0.0.0.0/0"} for net in subnets],
        },
    }
    plugins: list[dict[str, Any]] = [first, {"type": "firewall"}]
    if not wish.internal:
        plugins.insert(1, {"type": "portmap", "capabilities": {"portMappings": True}})
    made = attrs.evolve(
        wish,
        subnets=tuple(map(str, subnets)),
        gateways=gateways,
        options={**wish.options, "bridge": bridge},
    )
    return made, Conflist(wish.name, "1.0.0", tuple(plugins))


_Net = ipaddress.IPv4Network | ipaddress.IPv6Network


def _given(wish: NetworkConfig, what: str) -> tuple[NetworkConfig, Conflist]:
    """From a file of the user's."""
    if wish.subnets or wish.gateways or wish.ip_ranges or wish.internal or wish.ipv6 or len(wish.options) > 1:
        raise Invalid(what, "a conflist says all of it", "leave out the other options")
    made = attrs.evolve(read(Path(wish.options["conflist"])), name=wish.name, source="")
    seen = made.described()
    return attrs.evolve(wish, subnets=seen.subnets, gateways=seen.gateways), made


def _subnet(text: str, what: str) -> _Net:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid(what, f"subnet: {error}") from None


def _choose(wish: NetworkConfig, taken: Iterable[str], what: str) -> tuple[_Net, ...]:
    """A free /24 of 10.89.0.0/16, and a /64 of a random prefix (RFC 4193) where IPv6 is asked for."""
    used = [ipaddress.ip_network(text, strict=False) for text in taken]
    free = (
        net
        for net in ipaddress.IPv4Network("10.89.0.0/16").subnets(new_prefix=24)
        if not any(net.version == other.version and net.overlaps(other) for other in used)
    )
    first = next(free, None)
    if first is None:
        raise Invalid(what, "no subnet of 10.89.0.0/16 is free", "name one with --subnet")
    if not wish.ipv6:
        return (first,)
    return (first, ipaddress.IPv6Network((0xFD << 120 | uuid4().int >> 88 << 80, 64)))


def _gateways(wish: NetworkConfig, subnets: tuple[_Net, ...], what: str) -> tuple[str, ...]:
    """One a subnet: the wished one, else its first address."""
    wished = list(wish.gateways)
    made = []
    for net in subnets:
        own = next((text for text in wished if _within(text, net, what)), "")
        if own:
            wished.remove(own)
        made.append(own or str(net.network_address + 1))
    if wished:
        raise Invalid(what, f"gateway {wished[0]} is in none of its subnets")
    return tuple(made)


def _within(text: str, net: _Net, what: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise Invalid(what, str(error)) from None
    return address.version == net.version and address in net


def _ranges(
    wish: NetworkConfig, subnets: tuple[_Net, ...], gateways: tuple[str, ...], what: str
) -> list[dict[str, str]]:
    """As host-local has them."""
    limits = [_subnet(text, what) for text in wish.ip_ranges]
    made = []
    for net, gateway in zip(subnets, gateways, strict=True):
        item = {"subnet": str(net), "gateway": gateway}
        limit = next((each for each in limits if each.version == net.version and each.subnet_of(net)), None)  # type: ignore[arg-type]
        if limit is not None:
            limits.remove(limit)
            first, last = limit[0], limit[-1]
            item["rangeStart"] = str(first + 1 if first == net[0] else first)
            item["rangeEnd"] = str(last - 1 if last == net[-1] else last)
        made.append(item)
    if limits:
        raise Invalid(what, f"range {limits[0]} is in none of its subnets")
    return made
