"""``wherry start``."""

from __future__ import annotations

import click

from wherry.api import Invalid
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.keys import keys_option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each, follow, foreground, stdio


@click.command(
    "start",
    cls=Command,
    help="Start created or stopped containers.",
    examples="wherry start db\nwherry start -ai shell",
)
@option("-a", "--attach", is_flag=True, help="Show its output, pass on signals, exit with its code")
@option("-i", "--interactive", is_flag=True, help="Pass stdin to it; implies --attach")
@keys_option
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(
    session: Session, *, attach: bool, interactive: bool, detach_keys: bytes, containers: tuple[str, ...]
) -> int:
    """Prints each name, or follows the one."""
    engine = session.engine
    if not attach and not interactive:

        def start(name: str) -> str:
            engine.start(name)
            return name

        return each(session, containers, start)
    if len(containers) > 1:
        raise Invalid('option "--attach"', "it is for one container at a time")
    container = engine.container(containers[0])
    mine = stdio(session, interactive=interactive, tty=container.tty)
    with foreground(session, mine, detach_keys) as streams:
        engine.start(container.id, streams)
        # One that ran already was attached to, at the size that its terminal had.
        if container.status == "running" and mine.hold_stdin and session.rows:
            engine.resize(container.id, session.rows, session.columns)
        return follow(session, container.id, streams, tty=container.tty)
