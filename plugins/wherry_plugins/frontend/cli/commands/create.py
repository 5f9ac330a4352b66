"""``wherry create``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wherry.api import AlreadyExists
from wherry_plugins.frontend.cli.command import Command
from wherry_plugins.frontend.cli.creation import build_request, creation_options
from wherry_plugins.frontend.cli.session import Session
from wherry_plugins.frontend.cli.streams import write_cidfile
from wherry_plugins.frontend.cli.tracefile import traced
from wherry_plugins.frontend.cli.watching import shown


@click.command(
    "create",
    cls=Command,
    interspersed=False,
    help='Create a container from IMAGE, print its id, and leave it for "wherry start".',
    examples="wherry create --name job -v ./in:/in:ro busybox wc -l /in/data",
)
@creation_options
def command(session: Session, **options: Any) -> int:
    """Prints the id."""
    cidfile = options["cidfile"]
    request = build_request(session, **options)
    if cidfile and Path(session.path(cidfile)).exists():
        raise AlreadyExists(
            f'file "{cidfile}"', "it exists and may belong to another container", "remove it or name another"
        )
    with traced(session, options["trace"]), shown(session, request.image, quiet=options["quiet"]):
        container = session.engine.create(request)
    if cidfile:
        write_cidfile(session, cidfile, container.id)
    session.line(container.id)
    return 0
