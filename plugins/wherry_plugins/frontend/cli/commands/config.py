"""``wherry config``."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click
from attrs import asdict

from wherry.api import Unavailable
from wherry_plugins.frontend.cli.command import Command, CommandGroup, argument
from wherry_plugins.frontend.cli.listing import json_option, table
from wherry_plugins.frontend.cli.session import Session

HERE = "wherry_plugins.frontend.cli.commands.config"


@click.command(
    "check",
    cls=Command,
    help="Check a config file: its syntax, keys, types and driver names. The exit code is 1 when it has an error.",
    examples="wherry config check my.toml",
)
@argument("file", metavar="FILE")
def check(session: Session, *, file: str) -> int:  # noqa: ARG001
    """Never reached by way of the client, which does it without an engine."""
    raise Unavailable(f'command "config check {file}"', "only the client can do that, without an engine")


@click.command("show", cls=Command, help="Print the config in effect, each value with its origin.")
@json_option()
def show(session: Session, *, as_json: bool) -> int:
    """Prints one line a value."""
    origins = session.engine.config()
    if as_json:
        session.line(json.dumps([asdict(origin) for origin in origins], indent=2, default=_plain))
        return 0
    rows = [
        ("KEY", "VALUE", "ORIGIN"),
        *[(one.key, json.dumps(one.value, default=_plain), one.origin) for one in origins],
    ]
    session.out(table(rows))
    return 0


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


group = CommandGroup(
    "config",
    {
        "check": (HERE, "check", "Config", "Check a config file"),
        "show": (HERE, "show", "Config", "Print the config in effect with the origin of each value"),
    },
    help="Check a config file, or show the one in effect.",
    epilog="",
)
