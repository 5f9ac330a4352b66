"""The json-file log driver: its options, and reading back over rotated files, also while they are written."""

from __future__ import annotations

import itertools
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.api import FailedPrecondition, Invalid, LogLine, LogSink
from wherry.shim.logfile import LogFile
from wherry_plugins.log.json_file import JsonFile, JsonFileConfig, parse_size
from wherry_plugins.log.json_file.reading import Follower, parse_time
from wherry_plugins.log.none import NoneConfig, NoneLog


@pytest.fixture
def driver(tmp_path: Path) -> JsonFile:
    context: Any = SimpleNamespace(root=tmp_path)
    return JsonFile(JsonFileConfig(), context)


class Writer:
    """What the logger does."""

    def __init__(self, sink: LogSink) -> None:
        self.log = LogFile(sink.path, sink.format, sink.max_size, sink.max_file, None)

    def write(self, *lines: bytes, stream: int = 0) -> None:
        for line in lines:
            self.log.open()
            if self.log.full():
                self.log.rotate()
            self.log.write(line, stream)


def text(lines: Iterator[LogLine]) -> bytes:
    return b"".join(line.data for line in lines)


def test_options(driver: JsonFile, tmp_path: Path) -> None:
    assert driver.sink("c", {}) == LogSink("json-file", path=str(tmp_path / "c-json.log"))
    sink = driver.sink("c", {"max-size": "10m", "max-file": "3", "mode": "non-blocking"})
    assert (sink.max_size, sink.max_file, sink.when_full) == (10 << 20, 3, "drop")
    for options in (
        {"max-size": "many"}, {"max-size": "1"}, {"max-file": "0"}, {"max-file": "-1"}, {"mode": "fast"}, {"colour": "blue"},
    ):  # fmt: skip
        with pytest.raises(Invalid):
            driver.sink("c", options)
    assert [parse_size(size) for size in ("", "-1", "4096", "64k", "1.5M", "2GiB", "1gb")] == [
        0, 0, 4096, 65536, 3 << 19, 2 << 30, 1 << 30,
    ]  # fmt: skip


def test_what_was_written_is_read(driver: JsonFile) -> None:
    assert list(driver.read("c")) == []
    writer = Writer(driver.sink("c", {}))
    writer.write(b"one\ntwo\n", b"half")
    writer.write(b"bad \xff\n", stream=1)
    lines = list(driver.read("c"))
    assert [(line.stream, line.data) for line in lines] == [
        ("stdout", b"one\n"), ("stdout", b"two\n"), ("stdout", b"half"), ("stderr", b"bad \xff\n"),
    ]  # fmt: skip
    assert all(abs(line.time - time.time_ns()) < 60e9 for line in lines)
    driver.remove("c")
    driver.remove("c")
    assert list(driver.read("c")) == []


def test_over_rotated_files(driver: JsonFile, tmp_path: Path) -> None:
    sink = driver.sink("c", {"max-size": "4096", "max-file": "5"})
    writer = Writer(sink)
    lines = [b"line %03d\n" % number for number in range(200)]
    writer.write(*lines)
    assert len(list(tmp_path.iterdir())) == 4
    assert text(driver.read("c")) == b"".join(lines)
    assert text(driver.read("c", tail=90)) == b"".join(lines[-90:])
    assert text(driver.read("c", tail=0)) == b""
    assert text(driver.read("c", tail=1000)) == b"".join(lines)
    driver.remove("c")
    assert list(tmp_path.iterdir()) == []


def test_tail_counts_lines_not_pieces(driver: JsonFile) -> None:
    writer = Writer(driver.sink("c", {}))
    writer.write(b"one\n", b"tw", b"o\n", b"thr", b"ee")
    assert text(driver.read("c", tail=1)) == b"three"
    assert text(driver.read("c", tail=2)) == b"two\nthree"


def test_tail_over_rotated_files(driver: JsonFile, tmp_path: Path) -> None:
    writer = Writer(driver.sink("c", {"max-size": "4096", "max-file": "100"}))
    lines = [b"line %05d\n" % number for number in range(1000)]
    writer.write(*lines)
    assert len(list(tmp_path.iterdir())) > 5
    for count in (0, 1, 30, 700, 1000, 2000):
        assert text(driver.read("c", tail=count)) == b"".join(lines[max(0, 1000 - count) :])
    follower = driver.read("c", follow=True, tail=300)
    assert b"".join(line.data for line in itertools.islice(follower, 300)) == b"".join(lines[-300:])
    writer.write(b"more\n")
    assert next(line for line in follower if line.data).data == b"more\n"
    follower.close()  # type: ignore[attr-defined]


def memory_of_the_tail(driver: JsonFile) -> int:
    """The most bytes that are held while the last line of a log is read, which is 16 MiB long and has no end."""
    writer = Writer(driver.sink("c", {}))
    for _ in range(256):
        writer.write(b"x" * (1 << 16))
    tracemalloc.start()
    try:
        assert sum(len(line.data) for line in driver.read("c", tail=1)) == 16 << 20
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_line_without_an_end_is_not_held(driver: JsonFile) -> None:
    assert memory_of_the_tail(driver) < 4 << 20


def test_twin_that_holds_what_it_skips_to(driver: JsonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    skip = Follower.skip_to_tail

    def holding(self: Follower, count: int) -> None:
        other = Follower(self._path)
        self.held = list(other.records())  # type: ignore[attr-defined]
        other.close()
        skip(self, count)

    monkeypatch.setattr(Follower, "skip_to_tail", holding)
    assert memory_of_the_tail(driver) > 16 << 20


def test_since_and_until(driver: JsonFile) -> None:
    writer = Writer(driver.sink("c", {}))
    writer.write(b"one\n", b"two\n", b"three\n")
    first, second, third = driver.read("c")
    assert list(driver.read("c", since=second.time)) == [second, third]
    assert list(driver.read("c", until=second.time)) == [first, second]
    assert list(driver.read("c", since=second.time, until=second.time)) == [second]
    assert list(driver.read("c", follow=True, until=time.time_ns())) == [first, second, third]


def test_a_torn_record_is_passed_over(driver: JsonFile) -> None:
    sink = driver.sink("c", {})
    Writer(sink).write(b"one\n")
    with Path(sink.path).open("ab") as file:
        file.write(b'{"log":"tor\n\0\0\0\n{"log":"two\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n')
    assert text(driver.read("c")) == b"one\ntwo\n"
    assert parse_time("2026-01-01T00:00:00.5Z") - parse_time("2026-01-01T00:00:00Z") == 500_000_000


@pytest.mark.parametrize("options", [{}, {"max-size": "4096", "max-file": "100"}], ids=["plain", "rotated"])
def test_following_misses_and_doubles_nothing(driver: JsonFile, options: dict[str, str]) -> None:
    sink = driver.sink("c", options)
    lines = [b"line %05d\n" % number for number in range(3000)]

    def write() -> None:
        writer = Writer(sink)
        for index in range(0, len(lines), 7):
            writer.write(*lines[index : index + 7])
            if index % 210 == 0:
                time.sleep(0.01)

    thread = threading.Thread(target=write)
    follower = driver.read("c", follow=True)
    assert next(follower).data == b""  # nothing yet
    thread.start()
    found = b""
    while len(found) < len(b"".join(lines)):
        found += next(follower).data
    thread.join()
    assert found == b"".join(lines)
    started = time.monotonic()
    assert [line.data for line in itertools.islice(follower, 2)] == [b"", b""]
    assert time.monotonic() - started < 10
    follower.close()  # type: ignore[attr-defined]


def test_following_from_the_tail_over_a_cut_back_file(driver: JsonFile) -> None:
    """A killed logger's broken batch is cut off again: whole records of it that were read are not read twice as others."""
    sink = driver.sink("c", {})
    writer = Writer(sink)
    writer.write(b"one\n", b"two\n")
    follower = driver.read("c", follow=True, tail=1)
    assert next(follower).data == b"two\n"
    with Path(sink.path).open("ab") as file:
        file.write(b'{"log":"broken')
    assert next(follower).data == b""
    with Path(sink.path).open("ab") as file:
        file.truncate(writer.log.size)
    writer.write(b"three\n")
    assert next(line for line in follower if line.data).data == b"three\n"
    follower.close()  # type: ignore[attr-defined]


def test_none() -> None:
    context: Any = None
    driver = NoneLog(NoneConfig(), context)
    assert driver.sink("c", {}) == LogSink("none")
    with pytest.raises(Invalid):
        driver.sink("c", {"max-size": "1m"})
    with pytest.raises(FailedPrecondition):
        driver.read("c")
    driver.remove("c")
