"""``bridge``: containers with addresses of their own on a bridge of the host, networks that users define, published ports."""

from __future__ import annotations

from wherry.api import Capabilities, Context, Network, Registration, hookimpl
from wherry_plugins.network.bridge.config import BridgeConfig


def _init(config: BridgeConfig, context: Context) -> Network:
    from wherry_plugins.network.bridge.driver import BridgeNetwork

    return BridgeNetwork(config, context)


def _probe(_config: BridgeConfig, _context: Context) -> str | None:
    from wherry.kit import namespaces, processes
    from wherry_plugins.network.bridge.netd import libnftables

    if not namespaces.owns_network() and not namespaces.confined():
        return "bridges are made in the host's network, which belongs to root"
    if not processes.get_capabilities()[0] & processes.capability_mask(["CAP_NET_ADMIN"]):
        return "the engine lacks CAP_NET_ADMIN"
    try:
        libnftables.library()
    except OSError:
        return f'the library "{libnftables.LIBRARY}" is missing (Debian: libnftables1)'
    return None


@hookimpl
def wherry_network() -> Registration[BridgeConfig, Network]:
    return Registration(
        id="bridge",
        config=BridgeConfig,
        init=_init,
        probe=_probe,
        capabilities=lambda config, context: Capabilities(frozenset({"networks", "ports", "publish", "dns"})),
    )
