"""network/slirp4netns: a process of slirp4netns(1) for each sandbox moves its packets to sockets of the host, for any user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.network.slirp4netns.driver import SlirpNetwork


@frozen
class SlirpConfig:
    """Where slirp4netns is and what sandboxes get by it.

    program: its path, "" for the one in $PATH. subnet: is cut into one /24 for each sandbox, whose address ends in 100 there. mtu in
    bytes. ipv6: also an address of fd00::/64 and a way out by it, where the host has a route for IPv6; ports are published by IPv4.
    patience: seconds until a sandbox must be connected. options: more of its own, e.g. ["--outbound-addr=192.0.2.1"].
    """

    program: str = ""
    subnet: str = "10.86.0.0/16"
    mtu: int = 65520
    ipv6: bool = True
    patience: float = 20.0
    options: tuple[str, ...] = ()


def _init(config: SlirpConfig, context: Context) -> SlirpNetwork:
    from wherry_plugins.network.slirp4netns.driver import SlirpNetwork

    return SlirpNetwork(config, context)


def _probe(config: SlirpConfig, _context: Context) -> str | None:
    from wherry.kit.networks.usermode import reason

    return reason(config.program or "slirp4netns")


@hookimpl
def wherry_network() -> Registration[SlirpConfig, SlirpNetwork]:
    return Registration(
        id="slirp4netns",
        config=SlirpConfig,
        init=_init,
        probe=_probe,
        capabilities=lambda config, context: Capabilities(frozenset({"ports", "rootless"})),
    )
