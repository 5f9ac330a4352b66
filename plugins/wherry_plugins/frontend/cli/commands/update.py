"""``wherry update``."""

from __future__ import annotations

from typing import Any

import click

from wherry_plugins.frontend.cli import values
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import each


@click.command(
    "update",
    cls=Command,
    help="Change the limits of containers, at once where they run and for each later start.",
    examples="wherry update --memory 1g --cpus 2 web\nwherry update --pids-limit -1 web db",
)
@option("-m", "--memory", type=values.size, metavar="SIZE", help="Limit of memory; 0: none")
@option("--memory-swap", type=values.swap, metavar="SIZE", help="Memory plus swap; -1: no limit")
@option("--memory-reservation", type=values.size, metavar="SIZE", help="Kept when memory is short; 0: nothing")
@option("--cpus", type=values.cpus, metavar="N", help="Limit of CPU time, in cores; 0: none")
@option("-c", "--cpu-shares", type=int, metavar="N", help="Weight of CPU time, 1024 is usual")
@option("--cpuset-cpus", "cpuset", metavar="LIST", help='CPUs it may run on, "0-2,4"')
@option("--pids-limit", type=int, metavar="N", help="Limit of processes; -1: none")
@argument("containers", nargs=-1, required=True, metavar="CONTAINER...")
def command(session: Session, *, containers: tuple[str, ...], **limits: Any) -> int:
    """Prints each name."""

    def update(name: str) -> str:
        session.engine.update(name, **limits)
        return name

    return each(session, containers, update)
