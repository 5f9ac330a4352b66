"""``wherry stop``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli import values
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command(
    "stop", cls=Command, help="Send containers their stop signal, and SIGKILL to those that do not exit in time."
)
@option(
    "-t",
    "--timeout",
    "--time",
    type=values.duration,
    metavar="SECONDS",
    help="How long to wait; the container's own when not given",
)
@option("-s", "--signal", default="", metavar="SIGNAL", help="Another signal than the container's own")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, timeout: float | None, signal: str, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def stop(name: str) -> str:
        session.engine.stop(name, timeout, signal)
        return name

    return each(session, containers, stop)
