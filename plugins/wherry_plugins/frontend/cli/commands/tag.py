"""``wherry tag``."""

from __future__ import annotations

import click

from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.session import Session


@click.command(
    "tag",
    cls=Command,
    help="Give an image one more name.",
    examples="wherry tag busybox registry.example/tools/busybox:1",
)
@argument("source", metavar="IMAGE")
@argument("target", metavar="NAME[:TAG]")
def command(session: Session, *, source: str, target: str) -> int:
    """Prints nothing."""
    session.engine.tag(source, target)
    return 0
