"""Times and sizes as docker's tables show them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

from wherry.api import Container


@lru_cache(4096)
def _duration(whole: int) -> str:
    hours = int(whole / 3600 + 0.5)
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if whole < 3600:
        return "About a minute" if whole < 120 else f"{whole // 60} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for days, unit, word in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if hours < 24 * days:
            return f"{hours // 24 // unit} {word}"
    return f"{hours // 24 // 365} years"


def duration(seconds: float) -> str:
    """ "Less than a second", "5 seconds", "About a minute", "3 hours", "2 weeks": docker's go-units, HumanDuration."""
    return "Less than a second" if seconds < 1 else _duration(int(seconds))


def ago(moment: int, now: int = 0) -> str:
    """moment in ns since the epoch: "2 minutes ago", or "N/A" for 0."""
    if moment <= 0:
        return "N/A"
    return duration(((now or time.time_ns()) - moment) / 1e9) + " ago"


def size(count: float) -> str:
    """Decimal units and three digits, as ``docker images``: "4.26MB"."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"), 1000, 3)


def binary(count: float) -> str:
    """Binary units, as ``docker stats``: "1.5MiB"."""
    return _scaled(count, ("B", "KiB", "MiB", "GiB", "TiB"), 1024, 4)


def _scaled(count: float, units: tuple[str, ...], base: int, digits: int) -> str:
    """In the largest unit of which there is one, as go-units' CustomSize: 999.9 kB is not "1e+03kB" but "1MB"."""
    at = 0
    while at < len(units) - 1 and float(f"{count:.{digits}g}") >= base:
        count /= base
        at += 1
    return f"{count:.{digits}g}{units[at]}"


def iso(moment: int) -> str:
    """RFC 3339 with nanoseconds, in UTC; Go's zero time for 0."""
    if moment <= 0:
        return "0001-01-01T00:00:00Z"
    whole = datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{moment % 10**9:09}".rstrip("0")
    return whole + (f".{fraction}" if fraction else "") + "Z"


def stamp(moment: int) -> str:
    """RFC 3339 in UTC with all nine digits, as ``docker logs --timestamps``: lines stay aligned."""
    return f"{datetime.fromtimestamp(moment // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{moment % 10**9:09}Z"


def local(moment: int) -> str:
    """As docker's CreatedAt: "2024-05-01 12:00:00 +0000 UTC"."""
    return datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


def status(container: Container, now: int = 0) -> str:
    """ "Up 3 seconds", "Up 2 hours (Paused)", "Exited (0) 5 seconds ago", "Created"."""
    now = now or time.time_ns()
    if container.status in {"running", "paused"}:
        text = f"Up {duration((now - container.started) / 1e9)}"
        return text + " (Paused)" if container.status == "paused" else text
    if container.status == "stopped" and container.started:
        code = "unknown" if container.exit_code is None else container.exit_code
        return f"Exited ({code}) {ago(container.finished, now)}"
    return "Created" if container.status == "created" or not container.started else container.status.capitalize()


def short(identifier: str) -> str:
    """The first twelve digits of an id or digest."""
    return identifier.removeprefix("sha256:")[:12]
