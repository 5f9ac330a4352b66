"""network/pasta: a process of passt's pasta(1) for each sandbox moves its packets to sockets of the host, for any user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.network.pasta.driver import PastaNetwork


@frozen
class PastaConfig:
    """Where pasta is and what sandboxes get by it.

    program: its path, "" for the one in $PATH. subnet: where their IPv4 addresses come from, the first being the gateway and the second
    the nameserver; each sandbox is alone there. mtu in bytes. patience: seconds until a sandbox must be connected. options: more of
    pasta's own, e.g. ["--map-gw"] so that the gateway's address leads to the host.
    """

    program: str = ""
    subnet: str = "10.87.0.0/16"
    mtu: int = 65520
    patience: float = 20.0
    options: tuple[str, ...] = ()


def _init(config: PastaConfig, context: Context) -> PastaNetwork:
    from wherry_plugins.network.pasta.driver import PastaNetwork

    return PastaNetwork(config, context)


def _probe(config: PastaConfig, _context: Context) -> str | None:
    from wherry.kit.networks.usermode import reason

    return reason(config.program or "pasta")


@hookimpl
def wherry_network() -> Registration[PastaConfig, PastaNetwork]:
    return Registration(
        id="pasta",
        config=PastaConfig,
        init=_init,
        probe=_probe,
        capabilities=lambda config, context: Capabilities(frozenset({"ports", "rootless"})),
    )
