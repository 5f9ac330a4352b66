"""network/macvlan: containers with hardware and IP addresses of their own on the network of one of the host's interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen

from wherry.api import Capabilities, Context, Registration, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.network.macvlan.driver import MacvlanNetwork


@frozen
class MacvlanConfig:
    """parent: the host's interface of networks that name none; "" gives each a dummy interface, which leads nowhere.

    pools: where subnets come from that nobody names, each key cut into subnets of its value's prefix length.
    """

    parent: str = ""
    pools: Mapping[str, int] = field(factory=lambda: {"10.90.0.0/16": 24})


def _init(config: MacvlanConfig, context: Context) -> MacvlanNetwork:
    from wherry_plugins.network.macvlan.driver import MacvlanNetwork

    return MacvlanNetwork(config, context)


def _probe(_config: MacvlanConfig, context: Context) -> str | None:
    from wherry.kit import namespaces

    if context.uid != 0 or not namespaces.owns_network():
        return "needs root: its links are made beside the host's"
    return None


@hookimpl
def wherry_network() -> Registration[MacvlanConfig, MacvlanNetwork]:
    return Registration(
        id="macvlan",
        config=MacvlanConfig,
        init=_init,
        probe=_probe,
        capabilities=lambda config, context: Capabilities(frozenset({"networks"})),
    )
