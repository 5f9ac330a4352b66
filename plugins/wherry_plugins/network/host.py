"""``host``: no network namespace of its own, the container sees the host's interfaces, ports and firewall."""

from __future__ import annotations

from attrs import frozen

from wherry.api import Capabilities, Context, Network, Registration, hookimpl
from wherry.kit.networks.single import SingleNetwork


@frozen
class HostConfig:
    """Nothing to configure."""


class HostNetwork(SingleNetwork):
    """The engine's own network namespace."""

    name = "host"
    netns = "host"
    why = "its containers listen on the host itself"

    def __init__(self, config: HostConfig, context: Context) -> None:
        super().__init__(context)


@hookimpl
def wherry_network() -> Registration[HostConfig, Network]:
    return Registration(
        id="host",
        config=HostConfig,
        init=HostNetwork,
        capabilities=lambda config, context: Capabilities(frozenset({"rootless", "host-netns"})),
    )
