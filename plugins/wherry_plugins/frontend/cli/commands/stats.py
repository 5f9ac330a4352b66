"""``wherry stats``."""

from __future__ import annotations

import json

import click

from wherry_plugins.frontend.cli.command import Command, argument
from wherry_plugins.frontend.cli.listing import json_option, table
from wherry_plugins.frontend.cli.session import Session


@click.command(
    "stats",
    cls=Command,
    help="Print what running containers use of the machine, once, by the counters of their cgroups.",
)
@json_option()
@argument("containers", nargs=-1, metavar="[CONTAINER...]")
def command(session: Session, *, as_json: bool, containers: tuple[str, ...]) -> int:
    """Prints one row a counter."""
    names = containers or tuple(container.name for container in session.engine.containers())
    found = {name: dict(session.engine.stats(name)) for name in names}
    if as_json:
        session.line(json.dumps(found, indent=2))
        return 0
    rows = [("NAME", "COUNTER", "VALUE")]
    rows += [(name, key, str(value)) for name, counters in found.items() for key, value in sorted(counters.items())]
    session.out(table(rows))
    return 0
