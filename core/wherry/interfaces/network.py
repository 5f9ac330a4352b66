"""The network kind, in the words of CNI 1.1: reserve before anything starts, attach before the process starts (it may be
created meanwhile), detach after."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, Protocol

from attrs import field, frozen

from wherry.interfaces.common import Labels
from wherry.interfaces.process import Sandbox


@frozen
class Port:
    """A published port. host_ip "" is every address of both families; host_port 0: a free one is chosen.

    A wish with host_port_last is for the first free one from host_port on up to that; what is granted has none.
    """

    container_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    host_ip: str = ""
    host_port: int = 0
    host_port_last: int = 0


@frozen
class NetworkConfig:
    """A network. subnets and ip_ranges are CIDR; empty: chosen. options: "mtu", "parent", ... of the driver. created: ns since the
    epoch, set by the engine; 0 for one that nobody made."""

    name: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    internal: bool = False
    ipv6: bool = False
    labels: Labels = field(factory=dict)
    options: Labels = field(factory=dict)
    created: int = 0


@frozen
class AttachRequest:
    """A wish. names: the container's name, then its aliases; addresses: wished ones, without prefix.

    A sandbox in several networks has an interface eth0, eth1, ... in each; where both give a way out, that of the lower number is
    taken. nameservers and search: what the user wants asked in place of the host's name servers and search domains.
    """

    sandbox_id: str
    network: str
    interface: str = "eth0"
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[Port, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


@frozen
class Reservation:
    """Ports and addresses (CIDR) claimed before anything starts.

    netns, from which the kernel makes the Sandbox: "" is a new one, by the shim; "host" is none of its own; else an nsfs
    path (of a pool) that the sandbox takes over. ``container:ID`` reserves nothing: that container's sandbox is used.
    """

    request: AttachRequest
    netns: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()


@frozen
class Attachment:
    """A CNI result: addresses are CIDR. nameservers: what the container shall ask; a loopback address is a resolver of the driver's
    own in the container's namespace, which passes on what it does not know to those of the request. host: by what address the
    container reaches the host, "" where it does not."""

    reservation: Reservation
    mac: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    nameservers: tuple[str, ...] = ()
    host: str = ""


@frozen
class EndpointConfig:
    """A network that a container is in, or is to be in, as its user wishes it; addresses are without prefix."""

    network: str
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    mac: str = ""


class Network(Protocol):
    """remove and detach succeed when the thing is gone; the others raise NotFound."""

    def create(self, config: NetworkConfig) -> NetworkConfig:
        """Answers the config with every default filled in."""
        ...

    def remove(self, name: str) -> None:
        """InUse while a sandbox is attached."""
        ...

    def list(self) -> Iterator[NetworkConfig]: ...
    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]: ...
    def reserve(self, request: AttachRequest) -> Reservation:
        """InUse names the taken port or address; Invalid a wish that this driver can't grant."""
        ...

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        """Works by shim.namespace and shim.socket, and never in the host's network namespace by mistake."""
        ...

    def detach(self, sandbox_id: str, network: str) -> None:
        """Frees the reservation too."""
        ...

    def check(self, sandbox_id: str, network: str) -> None:
        """FailedPrecondition says what differs."""
        ...

    def gc(self, live: Collection[str]) -> int:
        """Drops whatever belongs to sandboxes that are not in live; the number dropped."""
        ...


class PublishingNetwork(Network, Protocol):
    """What only some networks can: the flag "publish" says so, never isinstance."""

    def publish(self, sandbox_id: str, network: str, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        """Publishes ports of a sandbox that is attached and publishes none there, as ``reserve`` would have; the ports as granted.

        InUse names a taken port, Invalid one that this network can't publish; NotFound for a sandbox that is not attached,
        FailedPrecondition for one that publishes ports there already. Then nothing has changed.
        """
        ...
