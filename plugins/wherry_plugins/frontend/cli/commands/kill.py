"""``wherry kill``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command(
    "kill", cls=Command, help="Send a signal to containers.", examples="wherry kill web\nwherry kill -s HUP web"
)
@option("-s", "--signal", default="KILL", metavar="SIGNAL", help="Name or number (KILL)")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, signal: str, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def kill(name: str) -> str:
        session.engine.kill(name, signal)
        return name

    return each(session, containers, kill)
