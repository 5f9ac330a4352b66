"""``wherry plugins``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from wherry.api import PluginInfo
from wherry_plugins.frontend.cli.command import Command
from wherry_plugins.frontend.cli.listing import ListingRow, format_option, json_option, show
from wherry_plugins.frontend.cli.session import Session

_FIELDS: dict[str, Callable[[PluginInfo], Any]] = {
    "Kind": lambda plugin: plugin.family,
    "ID": lambda plugin: plugin.id,
    "Distribution": lambda plugin: plugin.distribution,
    "Version": lambda plugin: plugin.version,
    "State": lambda plugin: plugin.state,
    "Reason": lambda plugin: plugin.reason,
    "Process": lambda plugin: plugin.process,
    "LostThreads": lambda plugin: plugin.lost_threads,
}
COLUMNS = (
    ("KIND", "Kind"), ("ID", "ID"), ("DISTRIBUTION", "Distribution"), ("VERSION", "Version"), ("STATE", "State"),
    ("REASON", "Reason"),
)  # fmt: skip


@click.command("plugins", cls=Command, help="List plugins with their state, and the reason when one can't be used.")
@format_option()
@json_option()
def command(session: Session, *, form: str, as_json: bool) -> int:
    """Prints the list."""
    rows = [ListingRow(_FIELDS, plugin) for plugin in session.engine.plugins()]
    if as_json:
        from json import dumps

        from attrs import asdict

        session.line(dumps([asdict(plugin) for plugin in session.engine.plugins()], indent=2))
        return 0
    show(session, rows, COLUMNS, form=form)
    return 0
