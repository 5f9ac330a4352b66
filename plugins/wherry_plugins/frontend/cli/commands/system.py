"""``wherry system``."""

from __future__ import annotations

import click

from wherry.api import FailedPrecondition
from wherry_plugins.frontend.cli.command import Command, Group, option
from wherry_plugins.frontend.cli.session import Session

HERE = "wherry_plugins.frontend.cli.commands"


@click.command("reset", cls=Command, help="Remove every container, image and snapshot of this root.")
@option("-f", "--force", is_flag=True, help="Do not ask")
def reset(session: Session, *, force: bool) -> int:
    """Asks on a terminal; elsewhere --force is needed."""
    if not force:
        if not session.tty[0]:
            raise FailedPrecondition("system reset", "it removes every container and image", "confirm it with --force")
        root = session.engine.info().root
        session.out(f"This removes every container, image and snapshot under {root}.\nGo on? [y/N] ")
        if next(session.pieces(64), b"").strip().lower() not in {b"y", b"yes"}:
            session.line("Nothing was removed.")
            return 1
    session.engine.reset()
    return 0


group = Group(
    "system",
    {
        "reset": (f"{HERE}.system", "reset", "System", "Remove every container, image and snapshot"),
        "df": (f"{HERE}.df", "command", "System", "Show what images, containers and volumes take on disk"),
        "info": (f"{HERE}.info", "command", "System", "Print which drivers were chosen and why"),
        "events": (f"{HERE}.events", "command", "System", "Print what happens"),
        "prune": (f"{HERE}.pruning", "system", "System", "Remove containers, networks and images that nothing uses"),
    },
    help="Disk usage, reset, prune, and other names of info and events.",
    epilog="",
)
