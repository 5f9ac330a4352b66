"""``wherry kill``."""

from __future__ import annotations

import click

from wherry.api import NotFound
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each

FINAL = frozenset({"KILL", "9"})
"""After these the container is awaited, so that "kill" and then "rm" works."""
PATIENCE = 10.0


@click.command(
    "kill", cls=Command, help="Send a signal to containers.", examples="wherry kill web\nwherry kill -s HUP web"
)
@option("-s", "--signal", default="KILL", metavar="SIGNAL", help="Name or number (KILL)")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, signal: str, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def kill(name: str) -> str:
        session.engine.kill(name, signal)
        if signal.upper().removeprefix("SIG") in FINAL:
            try:
                session.engine.wait(name, "", PATIENCE)
            except NotFound:
                pass  # it was to be removed at its exit
        return name

    return each(session, containers, kill)
