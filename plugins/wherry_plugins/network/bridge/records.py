"""What netd is told of networks and of the containers in them: frozen and wire-safe."""

from __future__ import annotations

from attrs import frozen

from wherry.api import Port


@frozen
class BridgeState:
    """A network whose bridge is up in the hub. subnets are CIDR; gateways are the bridge's own addresses, bare, one a subnet.

    internal: nothing is routed or forwarded to the outside, no name is asked there. isolated: no traffic from or to the bridges
    of other networks. masquerade: what leaves the hub gets its address. icc: containers may speak to each other. mtu in bytes.
    names: the resolver knows the containers of this network by name.
    """

    name: str
    interface: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    internal: bool = False
    isolated: bool = True
    masquerade: bool = True
    icc: bool = True
    mtu: int = 1500
    names: bool = True


@frozen
class EndpointState:
    """A container's place in a network. interface is the hub's end of its veth pair; addresses are CIDR.

    names: container name, aliases, short id; the first is what a reverse look-up answers. ports are those published on this
    network, with the host ports that were chosen. forwarders: the name servers, bare addresses seen from the hub, that unknown
    names are asked of; search: domains that the resolver strips off a name of a container.

    Descriptors that go along (see ``netd.client.Netd.endpoint``) stay the caller's: who keeps them duplicates them. A sandbox
    in several networks brings its resolvers with the first one that has names, and none with the others.
    """

    sandbox_id: str
    network: str
    interface: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    names: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    forwarders: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
