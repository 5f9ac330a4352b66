"""``wherry engine``: the client serves these itself, as they must work without an engine; here are their help and the answer
of a running engine to ``status``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
from attrs import asdict

from wherry.api import Unavailable
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, CommandGroup
from wherry_plugins.frontend.cli.listing import json_option
from wherry_plugins.frontend.cli.session import Session

HERE = "wherry_plugins.frontend.cli.commands.engine"


def _client_only(verb: str) -> int:
    raise Unavailable(f'command "engine {verb}"', "only the client can do that", f'run "wherry engine {verb}"')


@click.command("start", cls=Command, help="Start the engine, and its shim, if they do not run.")
def start(session: Session) -> int:  # noqa: ARG001
    """Never reached by way of the client."""
    return _client_only("start")


@click.command("stop", cls=Command, help="Stop the engine; containers keep running, and the shim with them.")
def stop(session: Session) -> int:  # noqa: ARG001
    """Never reached by way of the client."""
    return _client_only("stop")


@click.command("restart", cls=Command, help="Start the engine anew; containers keep running.")
def restart(session: Session) -> int:  # noqa: ARG001
    """Never reached by way of the client."""
    return _client_only("restart")


@click.command("status", cls=Command, help="Print whether the engine runs, and where; exit code 3 when it does not.")
@json_option()
def status(session: Session, *, as_json: bool) -> int:
    """Prints pids, directories and the number of containers."""
    info = session.engine.info()
    running = len(session.engine.containers())
    if as_json:
        record = {
            "engine": asdict(info.engine),
            "shim": asdict(info.shim),
            "root": info.root,
            "run": info.run,
            "config": info.config,
            "running": running,
        }
        session.line(json.dumps(record, indent=2))
        return 0
    session.line(
        f"engine: running, pid {info.engine.pid}, version {info.engine.version}, up {_age(info.engine.start_time)}"
    )
    session.line(f"shim:   running, pid {info.shim.pid}, version {info.shim.version}, {running} containers running")
    session.line(f"root:   {info.root}\nrun:    {info.run}\nconfig: {info.config or 'the defaults'}")
    return 0


def _age(start: int) -> str:
    """How long a process runs that started at start, in clock ticks after boot (proc(5), field 22)."""
    import os

    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return human.duration(max(0.0, uptime - start / os.sysconf("SC_CLK_TCK")) if start else time.monotonic()).lower()


group = CommandGroup(
    "engine",
    {
        "start": (HERE, "start", "Engine", "Start the engine if it does not run"),
        "stop": (HERE, "stop", "Engine", "Stop it; containers keep running"),
        "restart": (HERE, "restart", "Engine", "Start it anew; containers keep running"),
        "status": (HERE, "status", "Engine", "Print whether it runs, and where"),
    },
    help="Start, stop, restart or query the resident engine. Every command starts it by itself where it does not run.",
    epilog="",
)
