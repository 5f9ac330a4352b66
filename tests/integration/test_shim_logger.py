"""The logger killed at every one of its steps: no byte is lost, none is doubled, in the log as with readers.

Each protecting step has a twin in which it is taken away, and which must lose or double something.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.shims import Bench, KillPoints, available, bench, read_json
from wherry.shim import arena, logfile, output, pipes

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

CHUNKS = [b"one\ntwo\nthr", b'ee \\ "quoted"\n\xc3\xa9\xff\n' + b"x" * 1200 + b"\n", b"no end"]
WHOLE = b"".join(CHUNKS)
ERROR = b"bad\n"
MOST_STEPS = 400


def life(made: Bench, points: KillPoints | None, log: dict[str, object], *, reader: bool) -> tuple[bytes, bytes]:
    """One container's output from first to last byte, the first logger dying where points say: (logged, read)."""
    made.start()
    if points is not None:
        points.wanted = 0  # those that follow live
    streams, stdout, stderr, stdin = made.streams("c/", log)
    os.close(stdin)
    source, sink_end = os.pipe()
    if reader:
        streams.attached["a1"] = {"stdout": os.dup(sink_end)}
    os.close(sink_end)
    made.keeper.add(streams)
    read = b""
    os.write(stderr, ERROR)
    os.close(stderr)
    try:
        for chunk in CHUNKS:
            os.write(stdout, chunk)
            made.until(lambda: not pipes.pending(streams.ends["stdout"]))
            if reader:
                read += available(source)
    finally:
        os.close(stdout)
    made.until(lambda: ("c/", True) in made.drained)
    if reader:
        read += available(source)
    os.close(source)
    logged = read_json(Path(str(log["path"])))
    return logged["stdout"] + logged["stderr"], read


def every_step(
    directory: Path, monkeypatch: pytest.MonkeyPatch, log: dict[str, object], *, reader: bool, first: bool = False
) -> list[int]:
    """The steps whose kill changed what arrived; with first, none after the first of them is tried."""
    points = KillPoints(monkeypatch)
    wrong = []
    for number in range(1, MOST_STEPS):
        where = directory / str(number)
        where.mkdir()
        with bench(where) as made:
            points.wanted = number
            result = life(made, points, {**log, "path": str(where / "log")}, reader=reader)
            if result != (WHOLE + ERROR, WHOLE if reader else b""):
                wrong.append(number)
                if first:
                    return wrong
            if made.keeper.starts == 1:  # it never came to that step: all were tried
                assert number > 20
                return wrong
    raise AssertionError(f"more than {MOST_STEPS} steps")


PLAIN = {"format": "json-file", "max_size": 0, "max_file": 1, "when_full": "block"}
ROTATED = {"format": "json-file", "max_size": 512, "max_file": 50, "when_full": "block"}


@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("log", [PLAIN, ROTATED], ids=["plain", "rotated"])
def test_a_kill_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: dict[str, object], reader: bool
) -> None:
    assert every_step(tmp_path, monkeypatch, log, reader=reader) == []


def forget_log_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena.Arena, "log", lambda self, slot: None)


def forget_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena.Arena, "shared", lambda self, slot, stream: False)


def forget_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.Output, "recover", lambda self: None)


def hold_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a simple pump does: read, then write."""
    plain = logfile.LogFile.write

    def write(self: logfile.LogFile, data: bytes, stream: int) -> None:
        plain(self, data, stream)

    def take(self: output.Output, target: int) -> bool:
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self.eof = True
            return False
        pipes.pending(self.fd)
        self.task.logger.arena.set_shared(self.task.streams.slot, 1 - self.index, False)  # a step between the two
        os.write(target, data)
        return True

    monkeypatch.setattr(logfile.LogFile, "write", write)
    monkeypatch.setattr(output.Output, "_take", take)


@pytest.mark.parametrize(
    ("harm", "reader"),
    [(forget_log_size, False), (forget_shared, True), (forget_recovery, True), (hold_in_memory, False)],
)
def test_without_a_protecting_step_a_kill_does_harm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[pytest.MonkeyPatch], None],
    reader: bool,
) -> None:
    harm(monkeypatch)
    assert every_step(tmp_path, monkeypatch, PLAIN, reader=reader, first=True) != []


def test_kills_at_random_moments_of_a_flood(tmp_path: Path) -> None:
    """A process writes 3 MB while its logger is killed over and over: exact bytes, both in the log and with a reader."""
    lines = b"".join(b"%07d %s\n" % (number, b"abcdefghij" * (number % 9)) for number in range(60_000))
    with bench(tmp_path) as made:
        made.start()
        log = {"format": "json-file", "path": str(tmp_path / "log"), "max_size": 1 << 20, "max_file": 100}
        streams, stdout, stderr, stdin = made.streams("c/", log)
        os.close(stderr)
        os.close(stdin)
        source, sink_end = os.pipe()
        streams.attached["a1"] = {"stdout": sink_end}
        made.keeper.add(streams)
        writer = os.fork()
        if writer == 0:
            view = memoryview(lines)
            while view:
                view = view[os.write(stdout, view[:100_000]) :]
            os._exit(0)
        os.close(stdout)
        read = bytearray()
        chance = random.Random(7)
        kills = 0

        def turn() -> bool:
            nonlocal kills
            read.extend(available(source))
            if kills < 15 and chance.random() < 0.3 and made.keeper.pid:
                os.kill(made.keeper.pid, signal.SIGKILL)
                kills += 1
                made.keeper._failures = 0  # else it would wait longer and longer
            return ("c/", True) in made.drained

        made.until(turn, 60)
        read.extend(available(source))
        os.close(source)
        assert bytes(read) == lines
        assert read_json(tmp_path / "log")["stdout"] == lines
        assert kills > 5
