"""``wherry rmi``."""

from __future__ import annotations

import click

from wherry.api import NotFound
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command("rmi", cls=Command, help="Remove names of images, and what no name needs any more.")
@option("-f", "--force", is_flag=True, help="Even while a container uses it; say nothing of those that do not exist")
@argument("images", nargs=-1, required=True, metavar="IMAGE...")
def command(session: Session, *, force: bool, images: tuple[str, ...]) -> int:
    """Prints what went."""

    def remove(name: str) -> str:
        try:
            return "\n".join(session.engine.remove_image(name, force=force))
        except NotFound:
            if not force:
                raise
            return ""

    return each(session, images, remove)
