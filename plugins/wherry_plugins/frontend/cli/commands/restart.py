"""``wherry restart``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli import values
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command("restart", cls=Command, help="Stop containers and start them again.")
@option("-t", "--timeout", "--time", type=values.duration, metavar="SECONDS", help="How long to wait before SIGKILL")
@option("-s", "--signal", default="", metavar="SIGNAL", help="What is sent first; the container's own when not given")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, timeout: float | None, signal: str, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def restart(name: str) -> str:
        if session.engine.container(name).status in {"running", "paused"}:
            session.engine.stop(name, timeout, signal)
        session.engine.start(name)
        return name

    return each(session, containers, restart)
