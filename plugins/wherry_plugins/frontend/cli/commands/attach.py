"""``wherry attach``."""

from __future__ import annotations

import click

from wherry.api import FailedPrecondition
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.keys import keys_option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import follow, foreground, stdio


@click.command("attach", cls=Command, help="Connect stdin, stdout and stderr to a running container until it exits.")
@option("--no-stdin", is_flag=True, help="Leave stdin alone")
@option("--sig-proxy", is_flag=True, default=True, help="Pass signals on to the container (true)")
@keys_option
@argument("container", metavar="CONTAINER")
def command(session: Session, *, no_stdin: bool, sig_proxy: bool, detach_keys: bytes, container: str) -> int:
    """The exit code of the container."""
    engine = session.engine
    found = engine.container(container)
    if found.status not in {"running", "paused"}:
        raise FailedPrecondition(
            f'container "{container}"', f"it is {found.status}", f'run "wherry start -a {container}"'
        )
    interactive = not no_stdin and (session.tty[0] or not found.tty)
    mine = stdio(session, interactive=interactive, tty=found.tty)
    with foreground(session, mine, detach_keys) as streams:
        engine.attach(found.id, streams)
        if found.tty and session.rows:
            engine.resize(found.id, session.rows, session.columns)
        return follow(session, found.id, streams, tty=found.tty, proxy=sig_proxy)
