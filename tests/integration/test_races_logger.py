"""What a logger does about streams that were let go of, runs of the same name, and its own end; each with a twin."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.shims import Bench, bench, read_json
from wherry.shim import logger, readers
from wherry.shim.logger_supervisor import LoggerSupervisor
from wherry.shim.streams import TaskStreams

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

BOUND = 30.0
#: More than a reader's pipe holds, less than that and the logger's own hold together.
WHOLE = b"".join(b"line %06d\n" % number for number in range(11_000))


def slow(made: Bench, log: Path) -> tuple[TaskStreams, int]:
    """A container that has written all it has to say and ended, and its reader, which has read nothing."""
    made.start()
    sink = {"format": "json-file", "path": str(log), "max_size": 0, "max_file": 1, "when_full": "block"}
    streams, stdout, stderr, stdin = made.streams("c/", sink)
    os.close(stderr)
    os.close(stdin)
    source, sink_end = os.pipe()
    streams.attached["s1"] = {"stdout": sink_end}
    made.keeper.add(streams)
    os.set_blocking(stdout, False)
    left = memoryview(WHOLE)

    def written() -> bool:
        nonlocal left
        try:
            left = left[os.write(stdout, left) :]
        except BlockingIOError:
            pass
        return not left

    made.until(written, BOUND)
    os.close(stdout)
    made.keeper.exited(streams)
    return streams, source


def rest(made: Bench, source: int) -> bytes:
    """What a reader gets that begins to read now, to its end."""
    os.set_blocking(source, False)
    found: list[bytes] = []

    def over() -> bool:
        try:
            while piece := os.read(source, 1 << 16):
                found.append(piece)
        except BlockingIOError:
            return False
        return True

    made.until(over, BOUND)
    os.close(source)
    return b"".join(found)


def read_after_the_shim_let_go(directory: Path, *, once_released: bool = False) -> bytes:
    """once_released: the reader waits until the logger has let go, as one that never does would make it wait."""
    with bench(directory) as made:
        streams, source = slow(made, directory / "log")
        made.keeper.drop(streams)
        if once_released:
            made.until(lambda: not made.keeper.dropped, BOUND)
        read = rest(made, source)
        made.until(lambda: not made.keeper.dropped, BOUND)
        return read


def test_a_slow_reader_gets_all_though_its_container_was_removed(tmp_path: Path) -> None:
    assert read_after_the_shim_let_go(tmp_path) == WHOLE


def test_twin_a_logger_that_lets_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger.LoggedTask, "drop", lambda task: task.logger.leave(task))
    assert len(read_after_the_shim_let_go(tmp_path, once_released=True)) < len(WHOLE)


def wait_for(pid: int) -> None:
    """A child's end, within bounds."""
    handle = os.pidfd_open(pid)
    try:
        assert select.select([handle], [], [], BOUND)[0]
    finally:
        os.close(handle)


def read_after_the_shim_has_quit(directory: Path) -> tuple[bytes, bytes]:
    with bench(directory) as made:
        streams, source = slow(made, directory / "log")
        pid = made.keeper.pid
        made.keeper.quit()
        made.keeper.streams.clear()  # with the shim's end goes what it holds
        streams.close()
        read = rest(made, source)
        wait_for(pid)
        return read, read_json(directory / "log")["stdout"]


def test_a_slow_reader_outlives_the_shim(tmp_path: Path) -> None:
    assert read_after_the_shim_has_quit(tmp_path) == (WHOLE, WHOLE)


def test_twin_a_logger_that_ends_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger.Logger, "rest", lambda self: self.loop.stop() if self._quitting else None)
    read, _logged = read_after_the_shim_has_quit(tmp_path)
    assert len(read) < len(WHOLE)


def ends_after_its_last_container(directory: Path, monkeypatch: pytest.MonkeyPatch, patience: float) -> bool:
    """Whether a logger ends whose shim was lost, and has no successor, once the last container has said all it had to say."""
    monkeypatch.setattr(logger, "_WITHOUT_SHIM", 0.0)
    with bench(directory) as made:
        made.start()
        streams, *ends = made.streams("c/", None)
        made.keeper.add(streams)
        channel, pid = made.keeper.channel, made.keeper.pid
        assert channel is not None
        made.keeper._closing = True
        channel.close()  # with the shim goes all that it holds
        made.keeper.streams.clear()
        streams.close()
        for fd in ends:
            os.close(fd)
        handle = os.pidfd_open(pid)
        try:
            return bool(select.select([handle], [], [], patience)[0])
        finally:
            os.close(handle)


def test_a_logger_without_a_shim_ends_after_its_last_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends_after_its_last_container(tmp_path, monkeypatch, BOUND)


def test_twin_a_logger_that_looks_only_when_its_shim_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = logger.Logger.finish

    def finishing(self: logger.Logger, task: logger.LoggedTask) -> None:
        self.rest = lambda: None  # type: ignore[method-assign]
        finish(self, task)

    monkeypatch.setattr(logger.Logger, "finish", finishing)
    assert not ends_after_its_last_container(tmp_path, monkeypatch, 0.5)


def forgets_a_client_that_left(directory: Path) -> bool:
    """A client of a container that says nothing goes away without a word; whether that was noticed by the time that two others, who
    came later, had left as one should."""
    with bench(directory) as made:
        made.start()
        streams, *ends = made.streams("c/", None)
        made.keeper.add(streams)
        clients = [os.pipe() for _ in range(3)]
        made.keeper.attach(streams, "a0", {"stdout": clients[0][1]})
        made.until(lambda: "a0/0" in streams.kept, BOUND)
        os.close(clients[0][0])
        for number in (1, 2):  # by the second one the logger has waited for events at least once
            made.keeper.attach(streams, f"a{number}", {"stdout": clients[number][1]})
            made.until(lambda name=f"a{number}/0": name in streams.kept, BOUND)  # type: ignore[misc]
            made.keeper.detach(streams, f"a{number}")
            made.until(lambda name=f"a{number}/0": name not in streams.kept, BOUND)  # type: ignore[misc]
            os.close(clients[number][0])
        noticed = "a0" not in streams.attached
        for fd in ends:
            os.close(fd)
        return noticed


def test_a_client_that_left_without_a_word_is_let_go_of(tmp_path: Path) -> None:
    assert forgets_a_client_that_left(tmp_path)


def test_twin_a_reader_whose_end_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.Reader, "_watch", lambda _reader: None)
    assert not forgets_a_client_that_left(tmp_path)


def what_is_heard_of_the_run_before(directory: Path) -> list[tuple[str, bool]]:
    """A run ends and is let go of, and the next one of that container begins, before the first one's last word is read."""
    with bench(directory) as made:
        made.start()
        streams, *ends = made.streams("c/", None)
        made.keeper.add(streams)
        for fd in ends:
            os.close(fd)
        channel = made.keeper.channel
        assert channel is not None
        deadline = time.monotonic() + BOUND
        while b'"drained"' not in peeked(channel.socket):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        made.keeper.drop(streams)
        following, *ends = made.streams("c/", None)
        made.keeper.add(following)
        released = made.keeper.dropped
        made.until(lambda: not released, BOUND)
        for fd in ends:
            os.close(fd)
        return list(made.drained)


def peeked(sock: Any) -> bytes:
    import socket

    try:
        data: bytes = sock.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    return data


def test_what_is_said_of_a_run_is_not_taken_for_the_next(tmp_path: Path) -> None:
    assert what_is_heard_of_the_run_before(tmp_path) == []


def test_twin_frames_that_name_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame: Callable[..., None] = LoggerSupervisor._frame

    def nameless(keeper: LoggerSupervisor, channel: Any, message: dict[str, Any], fds: list[int]) -> None:
        known = keeper.streams.get(message.get("key", ""))
        if known is not None and message["op"] != "released":
            message["slot"] = known.slot
        frame(keeper, channel, message, fds)

    monkeypatch.setattr(LoggerSupervisor, "_frame", nameless)
    assert what_is_heard_of_the_run_before(tmp_path) == [("c/", True)]
