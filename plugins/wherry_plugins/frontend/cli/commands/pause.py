"""``wherry pause`` and ``wherry unpause``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command("pause", cls=Command, help="Freeze all processes of containers.")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def pause(name: str) -> str:
        session.engine.pause(name)
        return name

    return each(session, containers, pause)


@click.command("unpause", cls=Command, help="Let frozen containers go on.")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def unpause(session: Session, *, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def resume(name: str) -> str:
        session.engine.resume(name)
        return name

    return each(session, containers, resume)
