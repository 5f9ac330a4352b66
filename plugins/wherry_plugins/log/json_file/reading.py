"""Reading back what the logger writes, over rotated files and while it goes on writing.

A file only grows, is renamed to the next number, or is cut back to the end of a whole record after the logger was killed; what was
cut is then written again, with other times but of the same length. So a reader stays with the file it has open, by inode, and
reads whole records only: its place in the file stays right.
"""

from __future__ import annotations

import calendar
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from io import FileIO

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


class Follower:
    """Whole records from a log that is being written, in order, each once.

    Files that were read stay open as long as they are part of the log, so that no new one gets their inode number.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._read: dict[tuple[int, int], FileIO] = {}

    def records(self) -> Iterator[bytes]:
        """All that are there now."""
        return (record for _file, _offset, record in self._placed())

    def _placed(self) -> Iterator[tuple[FileIO, int, bytes]]:
        """Each with its file and where it begins there."""
        while (file := self._open()) is not None:
            current = self._is_current(file)  # asked before reading: a file that was rotated away is complete
            for offset, record in self._lines(file):
                yield file, offset, record
            if current:
                return
            self._read[_identity(file)] = file
            self._file = None

    def _open(self) -> FileIO | None:
        """The file at hand, else the oldest that was not read yet.

        Files are opened from the newest on: a rotation meanwhile only moves them to numbers that are still to come, so one
        may be met twice but none is missed. While it is on its way, one number may be free.
        """
        if self._file is not None:
            return self._file
        met: dict[tuple[int, int], FileIO] = {}
        number = missing = 0
        while missing < 2:
            try:
                file = open(f"{self._path}.{number}" if number else self._path, "rb", buffering=0)  # noqa: SIM115
            except FileNotFoundError:
                missing += 1
            else:
                missing = 0
                if met.setdefault(_identity(file), file) is not file:
                    file.close()
            number += 1
        for identity in [identity for identity in self._read if identity not in met]:
            self._read.pop(identity).close()
        unread = [file for identity, file in met.items() if identity not in self._read]
        self._file = unread.pop() if unread else None
        for file in met.values():
            if file is not self._file:
                file.close()
        return self._file

    def _is_current(self, file: FileIO) -> bool:
        """Whether it is still the one that is written to."""
        try:
            info = os.stat(self._path)
        except FileNotFoundError:
            return False
        return _identity(file) == (info.st_dev, info.st_ino)

    @staticmethod
    def _lines(file: FileIO) -> Iterator[tuple[int, bytes]]:
        size = os.fstat(file.fileno()).st_size
        if size < file.tell():
            file.seek(size)
        rest, offset = b"", file.tell()
        while data := file.read(_BLOCK):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield offset, line
                offset += len(line) + 1
        # an unfinished record is read again as a whole: it may be cut back and written anew until then
        file.seek(-len(rest), os.SEEK_CUR)

    def close(self) -> None:
        for file in (*self._read.values(), *([self._file] if self._file is not None else ())):
            file.close()
        self._read.clear()
        self._file = None

    def skip_to_tail(self, count: int) -> None:
        """``records`` goes on with the last count lines that are there now. Remembers where they begin, not what they say: a line
        without an end may be as long as the log."""
        begins: deque[tuple[FileIO, int]] = deque(maxlen=max(count, 1))
        files: list[FileIO] = []
        fresh = True
        for file, offset, record in self._placed():
            if fresh:
                begins.append((file, offset))
            if file not in files[-1:]:
                files.append(file)
            fresh = b'\\n","stream"' in record
        if not count or not begins:
            return
        first, offset = begins[0]
        again = files[files.index(first) :]
        self._read = {identity: file for identity, file in self._read.items() if file not in again}
        for other in {*again[1:], self._file} - {first, None}:
            if other is not None:
                other.close()
        self._file = first
        if not first.closed:
            first.seek(offset)
        else:  # rotated away meanwhile, with what it said
            self._file = None


def _identity(file: FileIO) -> tuple[int, int]:
    info = os.fstat(file.fileno())
    return info.st_dev, info.st_ino


def read(path: str, *, follow: bool, since: int, until: int, tail: int) -> Iterator[LogLine]:
    """See wherry.api.LogDriver.read."""
    follower = Follower(path)
    try:
        if tail >= 0:
            follower.skip_to_tail(tail)
        quiet = time.monotonic()
        while True:
            for record in follower.records():
                line = decode(record)
                if line is None or line.time < since:
                    continue
                if until and line.time > until:
                    return
                yield line
                quiet = time.monotonic()
            if not follow or (until and time.time_ns() > until):
                return
            if time.monotonic() - quiet >= _QUIET:
                yield _IDLE
                quiet = time.monotonic()
            time.sleep(_POLL)
    finally:
        follower.close()
