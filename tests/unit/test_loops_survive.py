"""What a machine without room does to the loops: no thread, no process, no descriptor for a moment; each test with its twin."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.shims import Bench, read_json
from support.shims import bench as bench_in
from wherry.api import Unavailable
from wherry.engine.server.server import SocketServer
from wherry.kit import threads
from wherry.linux import framing
from wherry.linux.loop import IN, Loop
from wherry.shim import logger_supervisor
from wherry.shim.logger_supervisor import LoggerSupervisor

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_in(tmp_path) as made:
        yield made


# threads


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)


def served_after_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What two clients get of which the first one comes while no thread can be started."""
    server = SocketServer(None, root=tmp_path, run=tmp_path, group="", config="", frontends={})  # type: ignore[arg-type]
    server.open()
    accepting = threading.Thread(target=server.serve, daemon=True)
    accepting.start()
    answers = []
    try:
        with monkeypatch.context() as full:
            no_threads(full)
            answers.append(ask(tmp_path))
        answers.append(ask(tmp_path))
    finally:
        server.close()
        accepting.join(10)
    assert server.clients == 0
    return answers


def ask(run: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(run / "engine.sock"))
        try:
            framing.send(sock, {"version": "none such"})
            frame = framing.Reader(sock).next()
        except OSError as error:
            return type(error).__name__.encode()
    return b"closed" if frame is None else str(frame[0]).encode()


def test_the_engine_accepts_after_a_client_that_had_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served_after_a_refusal(tmp_path, monkeypatch)
    assert b"can't start new thread" in first
    assert b"mismatch" in second


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_twin_without_the_turning_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(client: socket.socket, error: Exception) -> None:
        client.close()
        raise error

    monkeypatch.setattr(SocketServer, "_turn_away", staticmethod(ends))
    with pytest.raises(AssertionError):
        _first, second = served_after_a_refusal(tmp_path, monkeypatch)
        assert b"mismatch" in second


def test_a_thread_that_cannot_be_started_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    no_threads(monkeypatch)
    with pytest.raises(Unavailable, match='thread "x": can\'t start new thread; see the pids limit'):
        threads.start(int, "x")


# the logger


def logged_after_a_refused_fork(made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What a container's log has at last whose logger could not be forked twice."""
    left = [errno.EAGAIN, errno.ENOMEM]
    fork = os.fork

    def refused() -> int:
        if left:
            raise OSError(left.pop(), "no process")
        return fork()

    monkeypatch.setattr(logger_supervisor.os, "fork", refused)
    made.start()
    path = tmp_path / "log"
    streams, stdout, stderr, stdin = made.streams("c/", {"format": "json-file", "path": str(path)})
    os.close(stdin)
    os.close(stderr)
    made.keeper.add(streams)
    os.write(stdout, b"said\n")
    os.close(stdout)
    made.until(lambda: ("c/", True) in made.drained, 3)
    return read_json(path)["stdout"]


def test_a_logger_that_cannot_be_forked_comes_later(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert logged_after_a_refused_fork(bench, tmp_path, monkeypatch) == b"said\n"


def test_twin_without_the_second_try(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoggerSupervisor, "_start_later", lambda self: None)
    with pytest.raises(TimeoutError):
        logged_after_a_refused_fork(bench, tmp_path, monkeypatch)


# the loop


def calls_of_a_failing_handler(turns: int) -> int:
    loop, calls = Loop(), []
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def fails(_events: int) -> None:
        calls.append(1)
        raise OSError(errno.ENOMEM, "no memory")

    loop.add(reader, IN, fails)
    for _ in range(turns):
        loop.later(0, lambda: None)
        loop.turn()
    loop.remove(reader)
    loop.later(0, lambda: None)
    loop.turn()  # what it rested for is forgotten with it
    loop.close()
    os.close(reader)
    os.close(writer)
    return len(calls)


def test_a_handler_that_fails_again_and_again_rests(capsys: pytest.CaptureFixture[str]) -> None:
    assert calls_of_a_failing_handler(200) < 20
    assert "no memory" in capsys.readouterr().err


def test_twin_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "_failed", lambda self, fd: None)
    assert calls_of_a_failing_handler(200) == 200


def test_a_handler_is_called_again_after_its_rest() -> None:
    loop, seen = Loop(), []
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def handler(_events: int) -> None:
        seen.append(1)
        if len(seen) < 4:
            raise OSError(errno.ENOMEM, "no memory")
        loop.stop()

    loop.add(reader, IN, handler)
    loop.run()
    assert len(seen) == 4
    loop.close()
    os.close(reader)
    os.close(writer)


def most_timers() -> int:
    loop = Loop()
    kept = [loop.later(1000, lambda: None) for _ in range(10)]
    most = 0
    for _ in range(10_000):
        loop.later(1000, lambda: None).cancel()
        most = max(most, len(loop._timers))
    assert all(timer.callback is not None for timer in kept)
    loop.close()
    return most


def test_cancelled_timers_do_not_pile_up() -> None:
    assert most_timers() < 200


def test_twin_that_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry.linux.loop._COMPACT", 1 << 30)
    assert most_timers() > 9_000


# descriptors that did not arrive


def taken_by_the_second_frame(flags: int) -> list[int]:
    """What the first frame is given whose descriptors were lost, where those of a second one arrive."""

    class Truncated:
        """recvmsg(2) of a process at RLIMIT_NOFILE, which has room again at the second call."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.calls = 0

        def recvmsg(self, size: int, room: int, how: int) -> Any:
            self.calls += 1
            data, ancillary, _flags, address = self.sock.recvmsg(size, room, how)
            if self.calls > 1:
                return data, ancillary, 0, address
            for _level, _kind, payload in ancillary:
                os.close(int.from_bytes(payload[:4], "little"))
            return data, [], flags, address

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reader = framing.Reader(Truncated(theirs))  # type: ignore[arg-type]
    with ours, theirs, open(os.devnull, "rb") as one, open("/proc/self/stat", "rb") as other:
        framing.send(ours, {"of": "the first"}, [one.fileno()])
        reader.feed()
        framing.send(ours, {"of": "the second"}, [other.fileno()])
        reader.feed()
        frame = reader.pop()
        reader.close()
        assert frame is not None
        for fd in frame[1]:
            os.close(fd)
        return frame[1]


def test_descriptors_that_were_lost_end_the_conversation() -> None:
    with pytest.raises(framing.FrameError, match="descriptors were lost"):
        taken_by_the_second_frame(socket.MSG_CTRUNC)


def test_twin_that_does_not_look_at_the_flag() -> None:
    assert len(taken_by_the_second_frame(0)) == 1
