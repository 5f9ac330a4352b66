"""``wherry rename``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.session import Session


@click.command(
    "rename",
    cls=Command,
    help="Give a container another name. Other containers of its networks know it by that name from its next start on.",
    examples="wherry rename db old-db",
)
@argument("container", metavar="CONTAINER")
@argument("name", metavar="NEW_NAME")
def command(session: Session, *, container: str, name: str) -> int:
    """Prints nothing, as docker."""
    session.engine.rename(container, name)
    return 0
