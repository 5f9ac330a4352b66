"""``wherry system``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, CommandGroup
from wherry_plugins.frontend.cli.confirming import agreed, force_option
from wherry_plugins.frontend.cli.session import Session

HERE = "wherry_plugins.frontend.cli.commands"


@click.command("reset", cls=Command, help="Remove every container, image, snapshot and volume of this root.")
@force_option()
def reset(session: Session, *, force: bool) -> int:
    """Asks on a terminal; elsewhere --force is needed."""
    if agreed(session, "system reset", "every container, image, snapshot and volume", force=force):
        session.engine.reset()
    return 0


group = CommandGroup(
    "system",
    {
        "reset": (f"{HERE}.system", "reset", "System", "Remove every container, image, snapshot and volume"),
        "df": (f"{HERE}.df", "command", "System", "Show what images, containers and volumes take on disk"),
        "info": (f"{HERE}.info", "command", "System", "Print which drivers were chosen and why"),
        "events": (f"{HERE}.events", "command", "System", "Print what happens"),
        "prune": (f"{HERE}.pruning", "system", "System", "Remove containers, networks and images that nothing uses"),
    },
    help="Disk usage, reset, prune, and other names of info and events.",
    epilog="",
)
