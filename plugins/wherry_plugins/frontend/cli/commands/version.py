"""``wherry version``."""

from __future__ import annotations

import json
import platform

import click

from wherry_plugins.frontend.cli.command import Command
from wherry_plugins.frontend.cli.listing import format_option, json_option, show_one
from wherry_plugins.frontend.cli.session import Session


@click.command("version", cls=Command, help="Print the version of client and engine; the engine is not started for it.")
@format_option("Print it by a Go template, or as JSON")
@json_option()
def command(session: Session, *, form: str, as_json: bool) -> int:
    """Prints it."""
    hello = session.connection.hello
    client = str(hello.get("version", ""))
    engine = (
        None
        if session.offline
        else {"Version": client, "Python": platform.python_version(), "Kernel": platform.release()}
    )
    if as_json or form:
        record = {"Client": {"Version": client}, "Server": engine}
        if as_json:
            session.line(json.dumps(record, indent=2))
        else:
            show_one(session, [record], form)
        return 0
    session.line(f"client: {client}")
    if engine is None:
        session.line("engine: not running")
    else:
        session.line(f"engine: {engine['Version']} (Python {engine['Python']}, Linux {engine['Kernel']})")
    return 0
