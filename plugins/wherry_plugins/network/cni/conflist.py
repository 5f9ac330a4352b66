"""Network configuration lists: what a file says, and what the engine's own networks are written as.

CNI specification 1.1, section 1, "Network configuration format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
from attrs import frozen

from wherry.api import Invalid, NetworkConfig
from wherry.kit import options
from wherry.kit.names import check_name, is_name
from wherry.kit.networks import addresses as ip

#: Oldest first; earlier ones have another form of results.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_OPTIONS: dict[str, options.Reader] = {"bridge": options.interface, "conflist": str, "mtu": options.mtu}


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
            ipam = plugin.get("ipam", {})
            groups = ipam.get("ranges")
            groups = groups if isinstance(groups, list) else []
            for item in (ipam, *(item for group in groups if isinstance(group, list) for item in group)):
                if isinstance(item, Mapping) and _is_subnet(item.get("subnet")):
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
    if not isinstance(name, str) or not is_name(name):
        raise Invalid(what, f'has no usable name: "{name}"')
    if not isinstance(plugins, list) or not plugins:
        raise Invalid(what, "has no plugins")
    for plugin in plugins:
        type = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(type, str) or not type or "/" in type or type in {".", ".."}:
            raise Invalid(what, f'a plugin has no usable type: "{type}"')
        for key in ("capabilities", "args", "ipam", "runtimeConfig"):
            if not isinstance(plugin.get(key, {}), dict):
                raise Invalid(what, f'"{key}" of plugin "{type}" is no object')
    said = data.get("cniVersions") or [data.get("cniVersion", "")]
    if not isinstance(said, list):
        raise Invalid(what, '"cniVersions" is no list')
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


def _is_subnet(text: Any) -> bool:
    try:
        return isinstance(text, str) and bool(ip_network(text, strict=False))
    except ValueError:
        return False


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


def given(wish: NetworkConfig) -> tuple[NetworkConfig, Conflist] | None:
    """From the file that the option "conflist" names; None without it. Invalid."""
    if "conflist" not in wish.options:
        return None
    if wish.subnets or wish.gateways or wish.ip_ranges or wish.internal or wish.ipv6 or len(wish.options) > 1:
        raise Invalid(f'network "{wish.name}"', "a conflist says all of it", "leave out the other options")
    made = attrs.evolve(read(Path(wish.options["conflist"])), name=wish.name, source="")
    seen = made.described()
    return attrs.evolve(wish, subnets=seen.subnets, gateways=seen.gateways), made


def judge(wish: NetworkConfig) -> None:
    """Invalid for a name or an option that no network can have."""
    check_name(wish.name, "network name")
    options.read_options(wish.options, _OPTIONS, 'the network driver "cni"')


def generate(config: NetworkConfig, data_dir: Path) -> tuple[NetworkConfig, Conflist]:
    """A list for a config that is filled in, and the config with the name of its bridge. data_dir: of host-local."""
    bridge = config.options.get("bridge") or f"cni-{uuid4().hex[:8]}"
    mtu = config.options.get("mtu", "")
    first: dict[str, Any] = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": not config.internal,
        "hairpinMode": True,
        **({"mtu": int(mtu)} if mtu else {}),
        "capabilities": {"ips": True, "mac": True},
        "ipam": {
            "type": "host-local",
            "dataDir": str(data_dir),
            "ranges": [
                [_range(ip.subnet(subnet), gateway, config)]
                for subnet, gateway in zip(config.subnets, config.gateways, strict=True)
            ],
            "routes": []
            if config.internal
            else [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in config.subnets],
        },
    }
    plugins: list[dict[str, Any]] = [first, {"type": "firewall"}]
    if not config.internal:
        plugins.insert(1, {"type": "portmap", "capabilities": {"portMappings": True}})
    made = attrs.evolve(config, options={**config.options, "bridge": bridge})
    return made, Conflist(config.name, "1.0.0", tuple(plugins))


def _range(subnet: ip.Network, gateway: str, config: NetworkConfig) -> dict[str, str]:
    """As host-local has them."""
    item = {"subnet": str(subnet), "gateway": gateway}
    within = next((one for one in map(ip.subnet, config.ip_ranges) if ip.overlap(one, subnet)), None)
    if within is not None:
        low, high = ip.hosts(subnet)
        make = type(subnet.network_address)
        item["rangeStart"] = str(make(max(low, int(within.network_address))))
        item["rangeEnd"] = str(make(min(high, int(within.broadcast_address))))
    return item
