"""``wherry stats``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
from attrs import frozen

from wherry.api import Container, Error
from wherry_plugins.frontend.cli import human
from wherry_plugins.frontend.cli.command import Command, argument, option
from wherry_plugins.frontend.cli.listing import Row, format_option, json_option, show
from wherry_plugins.frontend.cli.session import Session

APART = 0.25
"""Seconds between the two readings that CPU % is computed from."""


@frozen
class Reading:
    """One row: the counters of Engine.stats, and the share of one CPU that was used between two readings."""

    container: Container
    counters: Mapping[str, int]
    cpu: float


_FIELDS: dict[str, Callable[[Reading], Any]] = {
    "ID": lambda reading: reading.container.id[:12],
    "Container": lambda reading: reading.container.id[:12],
    "Name": lambda reading: reading.container.name,
    "CPUPerc": lambda reading: f"{reading.cpu:.2f}%",
    "MemUsage": lambda reading: human.binary(reading.counters.get("memory.current", 0)),
    "PIDs": lambda reading: str(reading.counters.get("pids.current", 0)),
    "Counters": lambda reading: dict(reading.counters),
}
COLUMNS = (("CONTAINER ID", "ID"), ("NAME", "Name"), ("CPU %", "CPUPerc"), ("MEM USAGE", "MemUsage"), ("PIDS", "PIDs"))


def _readings(session: Session, containers: tuple[Container, ...]) -> list[Reading]:
    before = _counters(session, containers)
    started = time.monotonic()
    time.sleep(APART)
    after = _counters(session, containers)
    passed = (time.monotonic() - started) * 1e6
    return [
        Reading(one, after[one.id], 100 * (_used(after[one.id]) - _used(before[one.id])) / passed)
        for one in containers
        if one.id in before and one.id in after
    ]


def _used(counters: Mapping[str, int]) -> int:
    return counters.get("cpu.usage_usec", 0)


def _counters(session: Session, containers: tuple[Container, ...]) -> dict[str, Mapping[str, int]]:
    """By id; one that ends meanwhile is left out."""
    found: dict[str, Mapping[str, int]] = {}
    for one in containers:
        try:
            found[one.id] = session.engine.stats(one.id)
        except Error:
            if len(containers) == 1:
                raise
    return found


@click.command(
    "stats",
    cls=Command,
    help="Print once what running containers use of the machine; with --json all counters of their cgroups.",
)
@option("--no-stream", is_flag=True, help="Accepted for docker's sake: it prints once anyway")
@format_option()
@json_option()
@argument("containers", nargs=-1, metavar="[CONTAINER...]")
def command(
    session: Session,
    *,
    no_stream: bool,  # noqa: ARG001
    form: str,
    as_json: bool,
    containers: tuple[str, ...],
) -> int:
    """Prints one row a container."""
    chosen = tuple(map(session.engine.container, containers)) if containers else session.engine.containers()
    if as_json:
        counters = _counters(session, chosen)
        session.line(json.dumps({one.name: dict(counters[one.id]) for one in chosen if one.id in counters}, indent=2))
        return 0
    show(session, [Row(_FIELDS, reading) for reading in _readings(session, chosen)], COLUMNS, form=form)
    return 0
