"""``wherry stats``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
from attrs import frozen

from wherry.api import Container, Error
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.listing import ListingRow, format_option, json_option, rendered
from wherry_plugins.frontend.cli.machine import memory
from wherry_plugins.frontend.cli.session import ClientGone, Session

APART = 0.25
"""Seconds between the first two readings, which the first CPU % is computed from."""
EVERY = 1.0
"""Seconds between later ones."""
_CLEAR, _HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"
_NOTHING = "--"


@frozen
class StatsSample:
    """One row: the counters of Engine.stats, and the share of one CPU that was used since the reading before. No counters: it does not
    run. machine: bytes of memory that there are."""

    container: Container
    counters: Mapping[str, int]
    cpu: float
    machine: int

    @property
    def used(self) -> int:
        """Bytes of memory without what the kernel takes back first, as docker's client computes it."""
        return max(0, self.counters.get("memory.current", 0) - self.counters.get("memory.stat.inactive_file", 0))

    @property
    def limit(self) -> int:
        return min(self.counters.get("memory.max", self.machine), self.machine)


def _column(text: Callable[[StatsSample], str]) -> Callable[[StatsSample], str]:
    return lambda reading: text(reading) if reading.counters else _NOTHING


def _pair(first: str, second: str) -> Callable[[StatsSample], str]:
    """Two counters, or dashes for those that nobody keeps: a container in the host's network has no traffic of its own."""

    def text(reading: StatsSample) -> str:
        values = [reading.counters.get(name) for name in (first, second)]
        return " / ".join([_NOTHING if value is None else human.size(value) for value in values])

    return _column(text)


_FIELDS: dict[str, Callable[[StatsSample], Any]] = {
    "ID": lambda reading: reading.container.id[:12],
    "Container": lambda reading: reading.container.id[:12],
    "Name": lambda reading: reading.container.name,
    "CPUPerc": _column(lambda reading: f"{reading.cpu:.2f}%"),
    "MemUsage": _column(lambda reading: f"{human.binary(reading.used)} / {human.binary(reading.limit)}"),
    "MemPerc": _column(lambda reading: f"{100 * reading.used / reading.limit:.2f}%" if reading.limit else _NOTHING),
    "NetIO": _pair("network.rx_bytes", "network.tx_bytes"),
    "BlockIO": _pair("io.rbytes", "io.wbytes"),
    "PIDs": _column(lambda reading: str(reading.counters.get("pids.current", 0))),
    "Counters": lambda reading: dict(reading.counters),
}
_WHOLE: dict[str, Callable[[StatsSample], Any]] = {
    **_FIELDS,
    "ID": lambda reading: reading.container.id,
    "Container": lambda reading: reading.container.id,
}
COLUMNS = (
    ("CONTAINER ID", "ID"), ("NAME", "Name"), ("CPU %", "CPUPerc"), ("MEM USAGE / LIMIT", "MemUsage"), ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"), ("BLOCK I/O", "BlockIO"), ("PIDS", "PIDs"),
)  # fmt: skip


def _readings(session: Session, choose: Callable[[], tuple[Container, ...]]) -> Iterator[list[StatsSample]]:
    """One list after another, each EVERY seconds, without an end."""
    there = memory()
    before, began = _counters(session, choose()), time.monotonic()
    wait = APART
    while True:
        time.sleep(wait)
        if session.gone:
            raise ClientGone
        chosen = choose()
        after, now = _counters(session, chosen), time.monotonic()
        passed = (now - began) * 1e6
        yield [StatsSample(one, after[one.id], _share(one.id, before, after, passed), there) for one in chosen]
        before, began, wait = after, now, EVERY


def _share(
    id: str, before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]], us: float
) -> float:
    """Per cent of one CPU; 0 for one that has begun or ended meanwhile."""
    used = [reading.get(id, {}).get("cpu.usage_usec") for reading in (before, after)]
    if used[0] is None or used[1] is None:
        return 0.0
    return max(0.0, 100 * (used[1] - used[0]) / us)


def _counters(session: Session, containers: tuple[Container, ...]) -> dict[str, Mapping[str, int]]:
    """By id; none for one that does not run."""
    found: dict[str, Mapping[str, int]] = {}
    for one in containers:
        try:
            found[one.id] = session.engine.stats(one.id) if one.status in {"running", "paused"} else {}
        except Error:  # it has ended meanwhile
            found[one.id] = {}
    return found


@click.command(
    "stats",
    cls=Command,
    help="Show what containers use of the machine, again and again until interrupted. With --json: once, all counters of running ones.",
    examples="wherry stats\nwherry stats --no-stream --format 'table {{.Name}}\\t{{.NetIO}}\\t{{.BlockIO}}' web db",
)
@option("-a", "--all", "everything", is_flag=True, help="Those that do not run too")
@option("--no-stream", is_flag=True, help="Only once")
@option("--no-trunc", is_flag=True, help="Whole ids")
@format_option()
@json_option()
@argument("containers", nargs=-1, metavar="[CONTAINER...]")
def command(
    session: Session,
    *,
    everything: bool,
    no_stream: bool,
    no_trunc: bool,
    form: str,
    as_json: bool,
    containers: tuple[str, ...],
) -> int:
    """Prints one row a container, on a terminal each time over the last ones."""
    ids = [session.engine.container(name).id for name in containers]

    def choose() -> tuple[Container, ...]:
        found = session.engine.containers(all=everything or bool(ids))
        return tuple([one for one in found if one.id in ids] if ids else found)

    if as_json:
        counted = {one.name: _counters(session, (one,))[one.id] for one in choose()}
        session.line(json.dumps({name: dict(counters) for name, counters in counted.items() if counters}, indent=2))
        return 0
    fields = _WHOLE if no_trunc else _FIELDS
    redraw = session.tty[1] and not no_stream
    if redraw:
        session.out(_CLEAR)
    for readings in _readings(session, choose):
        text = rendered([ListingRow(fields, reading) for reading in readings], COLUMNS, form)
        session.out(_HOME + text.replace("\n", f"{_CLEAR_LINE}\n") + _CLEAR_BELOW if redraw else text)
        if no_stream:
            break
    return 0
