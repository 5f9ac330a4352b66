"""``wherry logs``."""

from __future__ import annotations

from contextlib import closing
from typing import Any, cast

import click

from wherry_plugins.frontend.cli import values
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.human import stamp
from wherry_plugins.frontend.cli.session import ClientGone, Session

BATCH = 1 << 16
STREAMS = {"stdout": 1, "stderr": 2}


def tail_count(text: str) -> int:
    """Lines, or -1 for "all"."""
    if text == "all":
        return -1
    if not text.lstrip("-").isdecimal():
        raise ValueError(f'"{text}" is neither a number of lines nor "all"')
    return max(-1, int(text))


@click.command(
    "logs",
    cls=Command,
    help="Print what a container wrote, each stream to its own.",
    examples="wherry logs -f --tail 20 web",
)
@option("-f", "--follow", is_flag=True, help="Go on until it exits")
@option("-n", "--tail", type=tail_count, default=-1, metavar="N", help="Only the last N lines")
@option("--since", type=values.moment, default=0, metavar="TIME", help='Only after a time, or "10m" ago')
@option("--until", type=values.moment, default=0, metavar="TIME", help='Only before a time, or "10m" ago')
@option("-t", "--timestamps", is_flag=True, help="Put the time before each line")
@argument("container", metavar="CONTAINER")
def command(
    session: Session, *, follow: bool, tail: int, since: int, until: int, timestamps: bool, container: str
) -> int:
    """Copies the log."""
    lines = session.engine.logs(container, follow=follow, since=since, until=until, tail=tail)
    pending: list[bytes] = []
    size, stream = 0, 1
    with closing(cast(Any, lines)):
        for line in lines:
            if session.gone:
                raise ClientGone
            number = STREAMS.get(line.stream, 1)
            if pending and (number != stream or size > BATCH or follow or not line.data):
                session.write(stream, b"".join(pending))
                pending, size = [], 0
            if line.data:
                stream = number
                data = stamp(line.time).encode() + b" " + line.data if timestamps else line.data
                pending.append(data)
                size += len(data)
                if follow:
                    session.write(stream, b"".join(pending))
                    pending, size = [], 0
    if pending:
        session.write(stream, b"".join(pending))
    return 0
