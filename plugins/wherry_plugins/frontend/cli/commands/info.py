"""``wherry info``."""

from __future__ import annotations

import json

import click
from attrs import asdict

from wherry.api import Info
from wherry_plugins.frontend.cli.command import Command
from wherry_plugins.frontend.cli.listing import format_option, json_option, show_one
from wherry_plugins.frontend.cli.session import Session


def text(info: Info) -> str:
    """For people: the processes, the places, and per variant what was chosen and what was passed over, with the reason."""
    lines = [
        f"engine:    pid {info.engine.pid}, version {info.engine.version}",
        f"shim:      pid {info.shim.pid}, version {info.shim.version}",
        f"root:      {info.root}",
        f"run:       {info.run}",
        f"config:    {info.config or 'the defaults'}",
        f"features:  {', '.join(info.features) or 'none'}",
        f"ids:       {info.ids.get('namespace', '')}",
        f"layers:    {info.ids.get('layers', '')}",
        f"limits:    {info.limits}",
    ]
    for variant in sorted({*info.chosen, *info.passed_over}):
        lines.append(f"variant {variant}:")
        chosen = info.chosen.get(variant, {})
        passed = info.passed_over.get(variant, {})
        for kind in dict.fromkeys([*chosen, *passed]):
            lines.append(f"  {kind + ':':12} {chosen.get(kind, 'none')}")
            lines += [f"    passed over {driver}: {reason}" for driver, reason in passed.get(kind, {}).items()]
    return "\n".join(lines)


@click.command(
    "info",
    cls=Command,
    help="Print the processes, the directories, the kernel's features, and which drivers each variant chose and why.",
    examples="wherry info --format '{{.engine.pid}}'",
)
@format_option("Print it by a Go template, or as JSON")
@json_option()
def command(session: Session, *, form: str, as_json: bool) -> int:
    """Prints it."""
    info = session.engine.info()
    if as_json:
        session.line(json.dumps(asdict(info), indent=2, default=str))
    elif form:
        show_one(session, [json.loads(json.dumps(asdict(info), default=str))], form)
    else:
        session.line(text(info))
    return 0
