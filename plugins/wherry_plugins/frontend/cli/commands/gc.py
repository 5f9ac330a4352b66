"""``wherry gc``."""

from __future__ import annotations

import json

import click
from attrs import asdict

from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command
from wherry_plugins.frontend.cli.listing import json_option
from wherry_plugins.frontend.cli.session import Session


@click.command("gc", cls=Command, help="Remove blobs and snapshots that no image, container or lease refers to.")
@json_option()
def command(session: Session, *, as_json: bool) -> int:
    """Prints what went."""
    report = session.engine.gc()
    if as_json:
        session.line(json.dumps(asdict(report), indent=2))
        return 0
    for name in (*report.blobs, *report.snapshots):
        session.line(f"Deleted: {name}")
    session.line(f"Total reclaimed space: {human.size(report.bytes)}")
    return 0
