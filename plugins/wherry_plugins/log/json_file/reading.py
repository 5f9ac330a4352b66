"""Reading back what the logger writes, over rotated files and while it goes on writing.

A file only grows, is renamed to the next number, or is cut back to the end of a whole record after the logger was killed. So a
reader stays with the file it has open, by inode, and reads whole lines only.
"""

from __future__ import annotations

import calendar
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from wherry.api import LogLine

_POLL = 0.05
_QUIET = 0.4  # an empty line at least twice a second lets the caller stop
_BLOCK = 1 << 16
_IDLE = LogLine(0, "", b"")

_second = ("", 0)


def parse_time(text: str) -> int:
    """ns since the epoch of RFC 3339 in UTC, with up to nine decimals. ValueError when it is none."""
    global _second  # noqa: PLW0603 (lines of one second parse it once)
    stamp, _dot, rest = text.partition(".")
    fraction = rest.rstrip("Z")
    stamp = stamp.rstrip("Z")
    if stamp != _second[0]:
        _second = (stamp, calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S")))
    return _second[1] * 1_000_000_000 + (int(fraction[:9].ljust(9, "0")) if fraction else 0)


def decode(record: bytes) -> LogLine | None:
    """One line of the file; None when it is not a whole record (the power failed while it was written)."""
    try:
        entry = json.loads(record)
        data = entry["log"].encode("utf-8", "surrogateescape")
        return LogLine(parse_time(entry["time"]), str(entry["stream"]), data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def rotated(path: str) -> list[str]:
    """All files of a log, oldest first; the last is path itself, there or not."""
    number = 1
    names = [path]
    while os.path.lexists(f"{path}.{number}"):
        names.append(f"{path}.{number}")
        number += 1
    return names[::-1]


class Follower:
    """Whole records from a log that is being written, in order, each once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._read: set[tuple[int, int]] = set()
        self._rest = b""

    def records(self) -> Iterator[bytes]:
        """All that are there now."""
        while self._open():
            yield from self._lines()
            if self._current() or not self._ended():
                return

    def _open(self) -> bool:
        """The file at hand, or the oldest that was not read yet; False when there is none."""
        if self._file is not None:
            return True
        for name in rotated(self._path):
            try:
                file = open(name, "rb")  # noqa: SIM115 - kept open over many calls
            except FileNotFoundError:
                continue
            if _identity(file) in self._read:
                file.close()
                continue
            self._file, self._rest = file, b""
            return True
        return False

    def _lines(self) -> Iterator[bytes]:
        file = self._file
        if file is None:
            return
        size = os.fstat(file.fileno()).st_size
        position = file.tell()
        if size < position - len(self._rest):  # cut back to the last whole record before what was read
            file.seek(size)
            self._rest = b""
        elif size < position:
            file.seek(position - len(self._rest))
            self._rest = b""
        while data := file.read(_BLOCK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines

    def _current(self) -> bool:
        """Whether the file at hand is still the one that is written to."""
        try:
            info = os.stat(self._path)
        except FileNotFoundError:
            return False
        return self._file is not None and _identity(self._file) == (info.st_dev, info.st_ino)

    def _ended(self) -> bool:
        """Leaves a file that was rotated away, once nothing more was found in it after that; True when there may be a next."""
        file = self._file
        if file is None:
            return False
        more = os.fstat(file.fileno()).st_size > file.tell()
        if more:
            return True
        self._read.add(_identity(file))
        file.close()
        self._file = None
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def skip_to_tail(self, count: int) -> list[bytes]:
        """The records of the last count lines that are there now; what comes later is left for ``records``."""
        kept: deque[list[bytes]] = deque(maxlen=max(count, 1))
        line: list[bytes] = []
        for record in self.records():
            line.append(record)
            if b'\\n","stream"' in record:
                kept.append(line)
                line = []
        if line:
            kept.append(line)
        return [record for part in kept for record in part] if count else []


def _identity(file: BinaryIO) -> tuple[int, int]:
    info = os.fstat(file.fileno())
    return info.st_dev, info.st_ino


def read(path: str, *, follow: bool, since: int, until: int, tail: int) -> Iterator[LogLine]:
    """See wherry.api.LogDriver.read."""
    follower = Follower(path)
    try:
        first = follower.skip_to_tail(tail) if tail >= 0 else follower.records()
        for record in first:
            line = decode(record)
            if line is None or line.time < since:
                continue
            if until and line.time > until:
                return
            yield line
        quiet = time.monotonic()
        while follow:
            for record in follower.records():
                line = decode(record)
                if line is None or line.time < since:
                    continue
                if until and line.time > until:
                    return
                yield line
                quiet = time.monotonic()
            if until and time.time_ns() > until:
                return
            if time.monotonic() - quiet >= _QUIET:
                yield _IDLE
                quiet = time.monotonic()
            time.sleep(_POLL)
    finally:
        follower.close()
