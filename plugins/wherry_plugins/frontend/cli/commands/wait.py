"""``wherry wait``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.session import ClientGone, Session
from wherry_plugins.frontend.cli.streams import each, exit_code

LONGEST = 30.0
"""Seconds until a thread notices that its client is gone."""


@click.command("wait", cls=Command, help="Wait until containers exit and print their exit codes.")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, containers: tuple[str, ...]) -> int:
    """Prints one code a line."""

    def wait(name: str) -> str:
        found = session.engine.container(name)
        if found.remove:  # in one call: between two it could go, and its code with it
            ended = session.engine.wait(found.id)
        else:
            timeout = 1.0
            while (ended := session.engine.wait(found.id, "", timeout)) is None:
                if session.gone:
                    raise ClientGone
                timeout = min(LONGEST, timeout * 2)
        return str(exit_code(session, found.id, ended))

    return each(session, containers, wait)
