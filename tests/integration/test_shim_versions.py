"""A new shim finds a logger, or a ledger, of another version: it starts all the same, and leaves alone what it cannot read."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.shims import Shimmed
from wherry.linux import framing
from wherry.linux.loop import Loop
from wherry.shim import wire
from wherry.shim.journal import Journal
from wherry.shim.logger_supervisor import LoggerSupervisor
from wherry.shim.streams import TaskStreams

_STREAM = {"op": "stream", **TaskStreams("c/", 0, False, False, "").pack()[0], "ends": ["stdout"]}
_END = {"op": "streams", "key": "", "pid": 1, "format": 1}
ANSWERS: dict[str, list[tuple[dict[str, Any], int]]] = {
    "no pid": [({"op": "streams", "key": ""}, 3)],
    "another format": [(_STREAM, 1), ({**_END, "format": 2}, 3)],
    "fewer descriptors": [(_STREAM, 1), (_END, 2)],
    "a stream without a slot": [({key: value for key, value in _STREAM.items() if key != "slot"}, 1), (_END, 3)],
    "a stream without its descriptor": [(_STREAM, 0), (_END, 3)],
    "an op that is none": [({"op": "novel"}, 2), ({**_END, "format": 3}, 3)],
    "no op": [({}, 1)],
    "nothing": [],
}


class OtherLogger:
    """Listens where a logger does, and answers a takeover with frames of the test's."""

    def __init__(self, path: Path, answer: list[tuple[dict[str, Any], int]]) -> None:
        self._listener = wire.listen(str(path))
        self._listener.setblocking(True)
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:
            return
        with sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may hang up at the first wrong word
            framing.Reader(sock).next()
            for message, count in self._answer:
                fds = [os.open("/dev/null", os.O_RDWR) for _ in range(count)]
                try:
                    framing.send(sock, message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="wherry-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("case", ANSWERS)
def test_a_logger_that_speaks_otherwise_is_left_alone(directory: Path, case: str) -> None:
    loop = Loop()
    before = os.listdir("/proc/self/fd")
    other = OtherLogger(directory / "logger.sock", ANSWERS[case])
    keeper = LoggerSupervisor(loop, str(directory / "logger.sock"), lambda _key, _eof: None)
    assert keeper.take_over() == -1
    assert keeper.streams == {}
    other.close()
    loop.close()
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1  # the loop's


def test_a_shim_starts_beside_one(directory: Path) -> None:
    other = OtherLogger(directory / "logger.sock", ANSWERS["no pid"])
    made = Shimmed(directory)
    try:
        made.spawn("c", "exit 3")
        assert made.exit("c").attributes["code"] == "3"
        made.client.forget("c", "")
    finally:
        made.close()
        other.close()
    assert "KeyError: 'pid'" in (directory / "shim.log").read_text()


def test_a_line_of_a_ledger_that_says_less(directory: Path) -> None:
    """The other tasks are taken up."""
    from wherry.shim import recover

    class Recorder:
        """Of a shim what recover asks for."""

        def __init__(self) -> None:
            self.ledger = Journal()
            self.tasks: Any = self
            self.keeper: Any = self
            self.streams: dict[str, TaskStreams] = {}
            self.loop: Any = self
            self.sandboxes: Any = self
            self.added: list[str] = []
            self.undecided: set[tuple[str, str]] = set()

        def add(self, task: Any) -> None:
            self.added.append(task.id)

        def later(self, _seconds: float, _callback: Any) -> None: ...

        def compact(self) -> None: ...

    shim: Any = Recorder()
    whole = {"id": "b", "exec_id": "", "sandbox_id": "", "pid": 0, "start_time": time.time_ns(), "status": "running"}
    shim.ledger.note(task={"id": "a", "exec_id": ""})
    shim.ledger.note(task={**whole, "exit": None})
    recover.from_ledger(shim)
    assert shim.added == ["b"]
    os.close(shim.ledger.fd)
