"""``wherry port``."""

from __future__ import annotations

import click

from wherry.api import NotFound
from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.networking import addresses
from wherry_plugins.frontend.cli.session import Session


@click.command(
    "port",
    cls=Command,
    help="Print where the published ports of a container are to be had.",
    examples="wherry port web\nwherry port web 80/tcp",
)
@argument("container", metavar="CONTAINER")
@argument("private", required=False, metavar="[PORT[/PROTOCOL]]")
def command(session: Session, *, container: str, private: str) -> int:
    """Prints one line an address."""
    found = session.engine.container(container)
    number, _, protocol = private.partition("/")
    shown = False
    for port in found.ports if found.status in {"running", "paused"} else ():
        if not private:
            for address in addresses(port):
                session.line(f"{port.container_port}/{port.protocol} -> {address}")
        elif number == str(port.container_port) and (protocol or "tcp") == port.protocol:
            shown = True
            for address in addresses(port):
                session.line(address)
    if private and not shown:
        raise NotFound(f'port "{private}"', f'container "{found.name}" publishes no such port')
    return 0
