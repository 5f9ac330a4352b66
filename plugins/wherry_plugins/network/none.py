"""``none``: a network namespace of its own with nothing but the loopback interface, which the shim brings up."""

from __future__ import annotations

from attrs import frozen

from wherry.api import Capabilities, Context, Network, Registration, hookimpl
from wherry.kit.networks.single import SingleNetwork


@frozen
class NoneConfig:
    """Nothing to configure."""


class NoneNetwork(SingleNetwork):
    """A new network namespace with lo only."""

    name = "none"
    netns = ""
    why = "its containers have no way out"

    def __init__(self, config: NoneConfig, context: Context) -> None:
        super().__init__(context)


@hookimpl
def wherry_network() -> Registration[NoneConfig, Network]:
    return Registration(
        id="none",
        config=NoneConfig,
        init=NoneNetwork,
        capabilities=lambda config, context: Capabilities(frozenset({"rootless", "loopback-only"})),
    )
