"""network/cni: chains of CNI plugins, as their network configuration lists say (CNI specification 1.0 and 1.1)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.network.cni.driver import CniNetwork


@frozen
class CniConfig:
    """Where CNI plugins and their configuration are.

    conf_dirs: where network configuration lists are looked for, the first that has a name counts. bin_dirs: where their plugins
    are. default: the network that ``--network cni`` means, "" for the first by the name of its file. timeout: of one call of one
    plugin, in seconds; it is killed then with all that it has started.
    """

    conf_dirs: tuple[str, ...] = ("/etc/cni/net.d",)
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    default: str = ""
    timeout: float = 60.0


def _init(config: CniConfig, context: Context) -> CniNetwork:
    from wherry_plugins.network.cni.driver import CniNetwork

    return CniNetwork(config, context)


def _probe(config: CniConfig, context: Context) -> str | None:
    if context.uid != 0:
        return "its plugins need root"
    if not any(os.path.isdir(directory) for directory in config.bin_dirs):
        return f"there are no CNI plugins: none of {', '.join(config.bin_dirs)} exists"
    return None


@hookimpl
def wherry_network() -> Registration[CniConfig, CniNetwork]:
    return Registration(
        id="cni",
        config=CniConfig,
        init=_init,
        probe=_probe,
        capabilities=lambda config, context: Capabilities(frozenset({"networks", "ports"})),
    )
