"""Who is called what, as one container may know it: the names of a network are for those that are on it."""

from __future__ import annotations

import ipaddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from wherry_plugins.network.bridge.netd.state import Endpoint, Network

    Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


class NameEntry:
    """Those that share a name in a network; turns: who is first in the next answer, by IP version."""

    __slots__ = ("endpoints", "turns")

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.turns = {4: 0, 6: 0}

    def addresses(self, version: int) -> list[str]:
        """All of that version, another one first each time."""
        found = [address for endpoint in self.endpoints if (address := endpoint.address(version))]
        if len(found) > 1:
            turn = self.turns[version] % len(found)
            self.turns[version] = turn + 1
            found = found[turn:] + found[:turn]
        return found


class Zone:
    """The names of one network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.subnets: list[Subnet] = [ipaddress.ip_network(subnet, strict=False) for subnet in network.subnets]
        self.entries: dict[str, NameEntry] = {}
        self.owners: dict[str, Endpoint] = {}

    def add(self, endpoint: Endpoint) -> None:
        for name in dict.fromkeys(endpoint.names):
            self.entries.setdefault(name, NameEntry()).endpoints.append(endpoint)
        for address in endpoint.addresses:
            self.owners[str(ipaddress.ip_address(address))] = endpoint

    def remove(self, endpoint: Endpoint) -> None:
        for name in dict.fromkeys(endpoint.names):
            entry = self.entries.get(name)
            if entry is not None and endpoint in entry.endpoints:
                entry.endpoints.remove(endpoint)
                if not entry.endpoints:
                    del self.entries[name]
        for address in endpoint.addresses:
            key = str(ipaddress.ip_address(address))
            if self.owners.get(key) is endpoint:
                del self.owners[key]

    def entry(self, name: str, domains: tuple[str, ...]) -> NameEntry | None:
        """By a name as it is, with the network's behind it, or with a search domain behind it."""
        for domain in ("", self.network.name.lower(), *domains):
            if not domain:
                found = self.entries.get(name)
            elif name.endswith(f".{domain}"):
                found = self.entries.get(name[: -len(domain) - 1])
            else:
                continue
            if found is not None:
                return found
        return None


class Names:
    """All zones, and where each container is."""

    def __init__(self) -> None:
        self._zones: dict[str, Zone] = {}
        self._places: dict[str, dict[str, Endpoint]] = {}

    def network(self, network: Network) -> None:
        """A new one, or one that has changed: its endpoints stay."""
        zone = Zone(network)
        for places in self._places.values():
            if network.name in places:
                zone.add(places[network.name])
        self._zones[network.name] = zone

    def forget_network(self, name: str) -> None:
        self._zones.pop(name, None)

    def add(self, endpoint: Endpoint) -> None:
        """A new one, or one that has changed."""
        before = self._places.get(endpoint.sandbox, {}).get(endpoint.network)
        if before is not None:
            self.remove(before)
        self._places.setdefault(endpoint.sandbox, {})[endpoint.network] = endpoint
        if zone := self._zones.get(endpoint.network):
            zone.add(endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        places = self._places.get(endpoint.sandbox, {})
        if places.get(endpoint.network) is endpoint:
            del places[endpoint.network]
            if not places:
                del self._places[endpoint.sandbox]
        if zone := self._zones.get(endpoint.network):
            zone.remove(endpoint)

    def _seen(self, sandbox: str) -> Iterator[tuple[Endpoint, Zone]]:
        """The places of a container in networks that have names."""
        for endpoint in self._places.get(sandbox, {}).values():
            zone = self._zones.get(endpoint.network)
            if zone is not None and zone.network.names:
                yield endpoint, zone

    def addresses(self, sandbox: str, name: str, versions: tuple[int, ...]) -> list[str] | None:
        """What a name, in lower case, means to a container; None: nobody that it may know has that name."""
        entries = [entry for endpoint, zone in self._seen(sandbox) if (entry := zone.entry(name, endpoint.search))]
        if not entries:
            return None
        return [address for version in versions for entry in entries for address in entry.addresses(version)]

    def owner(self, sandbox: str, address: str) -> str | None:
        """The name behind an address, "" where nobody has it in a network of the container's; None: it is of no such network."""
        wanted = ipaddress.ip_address(address)
        known = None
        for _endpoint, zone in self._seen(sandbox):
            if any(wanted in subnet for subnet in zone.subnets):
                known = ""
                owner = zone.owners.get(str(wanted))
                if owner is not None and owner.names:
                    return f"{owner.names[0]}.{zone.network.name}"
        return known

    def forwarders(self, sandbox: str) -> tuple[str, ...] | None:
        """The servers that a container's other questions go to; None where all of its networks are internal."""
        found: dict[str, None] = {}
        outside = False
        for endpoint in self._places.get(sandbox, {}).values():
            zone = self._zones.get(endpoint.network)
            if zone is not None and not zone.network.internal:
                outside = True
                found.update(dict.fromkeys(endpoint.forwarders))
        return tuple(found) if outside else None

    def internal(self, address: str) -> bool:
        """Whether an address belongs to an internal network."""
        inside = [zone for zone in self._zones.values() if zone.network.internal]
        if not inside:
            return False
        wanted = ipaddress.ip_address(address.partition("%")[0])
        wanted = getattr(wanted, "ipv4_mapped", None) or wanted
        return any(wanted in subnet for zone in inside for subnet in zone.subnets)
