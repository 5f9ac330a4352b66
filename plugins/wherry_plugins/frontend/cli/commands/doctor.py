"""``wherry doctor``."""

from __future__ import annotations

import json

import click
from attrs import asdict

from wherry_plugins.frontend.cli.command import Command, option
from wherry_plugins.frontend.cli.listing import json_option
from wherry_plugins.frontend.cli.session import Session

PROBLEMS = 1


@click.command(
    "doctor",
    cls=Command,
    help="Compare records with what is there: processes, mounts, namespaces, cgroups, blobs, snapshots.\n\n"
    "The exit code is 1 when something is wrong and was not repaired.",
)
@option("--repair", is_flag=True, help="Put right what is wrong")
@json_option()
def command(session: Session, *, repair: bool, as_json: bool) -> int:
    """Prints the findings."""
    found = session.engine.doctor(repair=repair)
    if as_json:
        session.line(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            session.line(f"{finding.what}: {finding.problem}" + (f"; {finding.repair}" if finding.repair else ""))
        if not found:
            session.line("all is well")
    return PROBLEMS if any(not finding.repair for finding in found) else 0
