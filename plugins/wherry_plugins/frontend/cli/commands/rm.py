"""``wherry rm``."""

from __future__ import annotations

import click

from wherry.api import NotFound
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command("rm", cls=Command, help="Remove containers.", examples="wherry rm job\nwherry rm -f $(wherry ps -aq)")
@option("-f", "--force", is_flag=True, help="Kill those that run; say nothing of those that do not exist")
@option("-v", "--volumes", is_flag=True, help="Remove their volumes without a name, too")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, force: bool, volumes: bool, containers: tuple[str, ...]) -> int:
    """Prints each name."""

    def remove(name: str) -> str | None:
        try:
            session.engine.remove(name, force=force, volumes=volumes)
        except NotFound:
            if not force:
                raise
            return None
        return name

    return each(session, containers, remove)
