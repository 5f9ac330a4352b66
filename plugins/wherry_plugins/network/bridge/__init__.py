"""``bridge``: containers with addresses of their own on a bridge of the host, networks that users define, published ports."""

from __future__ import annotations

from wherry.api import Capabilities, Context, Network, Registration, hookimpl
from wherry_plugins.network.bridge.config import BridgeConfig


def _init(config: BridgeConfig, context: Context) -> Network:
    from wherry_plugins.network.bridge.driver import BridgeNetwork

    return BridgeNetwork(config, context)


@hookimpl
def wherry_network() -> Registration[BridgeConfig, Network]:
    return Registration(
        id="bridge",
        config=BridgeConfig,
        init=_init,
        capabilities=lambda config, context: Capabilities(frozenset({"networks", "ports", "dns"})),
    )
