"""What netd knows: networks and endpoints, as plain records of what the engine told (``records`` is the engine's side)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Key = tuple[str, str]


class Port:
    """A published port, host_port chosen."""

    __slots__ = ("container_port", "host_ip", "host_port", "protocol")

    def __init__(self, record: dict[str, Any]) -> None:
        self.container_port = int(record["container_port"])
        self.protocol = str(record["protocol"])
        self.host_ip = str(record["host_ip"])
        self.host_port = int(record["host_port"])


class Network:
    """A BridgeState."""

    __slots__ = (
        "gateways",
        "icc",
        "interface",
        "internal",
        "isolated",
        "masquerade",
        "name",
        "names",
        "record",
        "subnets",
    )

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.name = str(record["name"])
        self.interface = str(record["interface"])
        self.subnets: tuple[str, ...] = tuple(record["subnets"])
        self.gateways: tuple[str, ...] = tuple(record["gateways"])
        self.internal = bool(record["internal"])
        self.isolated = bool(record["isolated"])
        self.masquerade = bool(record["masquerade"])
        self.icc = bool(record["icc"])
        self.names = bool(record["names"])


class Endpoint:
    """An EndpointState. addresses are bare, names in lower case. listeners: a port's index in ports, with its descriptors."""

    __slots__ = (
        "addresses", "forwarders", "interface", "listeners", "names", "network", "ports", "record", "resolvers", "sandbox",
        "search",
    )  # fmt: skip

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.sandbox = str(record["sandbox_id"])
        self.network = str(record["network"])
        self.interface = str(record["interface"])
        self.addresses: tuple[str, ...] = tuple(address.partition("/")[0] for address in record["addresses"])
        self.names: tuple[str, ...] = tuple(name.lower() for name in record["names"])
        self.ports: tuple[Port, ...] = tuple(Port(port) for port in record["ports"])
        self.forwarders: tuple[str, ...] = tuple(record["forwarders"])
        self.search: tuple[str, ...] = tuple(domain.strip(".").lower() for domain in record["search"])
        self.resolvers: list[int] = []
        self.listeners: dict[int, list[int]] = {}

    @property
    def key(self) -> Key:
        return self.sandbox, self.network

    def address(self, version: int) -> str:
        """Its address of that IP version, "" without one."""
        return next((address for address in self.addresses if (":" in address) == (version == 6)), "")


__all__ = ["Endpoint", "Network", "Port"]
