"""A logger under a keeper in the test's own process, so that a test can kill it at any of its steps; and real shims."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.shim import arena, pipes, sink
from wherry.shim.keeper import Keeper
from wherry.shim.ledger import Ledger
from wherry.shim.loop import Loop
from wherry.shim.streams import Streams


class Bench:
    """A keeper and its logger (a fork of this process); the test turns the loop itself."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.drained: list[tuple[str, bool]] = []
        self.keeper = Keeper(self.loop, str(directory / "logger.sock"), lambda key, eof: self.drained.append((key, eof)))
        self.directory = directory
        self._ours: list[int] = []

    def start(self) -> None:
        self.keeper.open(Ledger())

    def streams(self, key: str, log: dict[str, Any] | None, *, hold: bool = False) -> tuple[Streams, int, int, int]:
        """New streams with stdout, stderr and stdin: (streams, the container's stdout, its stderr, its stdin)."""
        streams = Streams(key, self.keeper.slots.take(), False, hold, log)
        out, theirs_out = os.pipe2(os.O_CLOEXEC)
        err, theirs_err = os.pipe2(os.O_CLOEXEC)
        theirs_in, stdin = os.pipe2(os.O_CLOEXEC)
        for fd in (out, err, stdin):
            os.set_blocking(fd, False)
        streams.ends = {"stdin": stdin, "stdout": out, "stderr": err}
        return streams, theirs_out, theirs_err, theirs_in

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Turns the loop until condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("the logger did not get there")
            self.loop.later(0.002, lambda: None)
            self.loop.turn()

    def close(self) -> None:
        pid = self.keeper.pid
        self.keeper.quit()
        self.loop.close()
        if self.keeper.channel is not None:
            self.keeper.channel.closed = True
            self.keeper.channel.socket.close()
        for streams in self.keeper.streams.values():
            streams.close()
        if self.keeper._pidfd >= 0:
            os.close(self.keeper._pidfd)
        os.close(self.keeper.memory)
        os.close(self.keeper.ledger.fd)
        self.keeper.listener.close()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class KillPoints:
    """Counts the logger's steps, those that move bytes or note something; the process that reaches the wanted one is gone.

    A step is the moment before such a call, or after it. The logger is a fork, so each counts for itself.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wanted = 0
        self.seen = 0
        self._parent = os.getpid()
        for owner, name in (
            (pipes, "splice"), (pipes, "tee"), (pipes, "staging"), (arena.Arena, "set_log"), (arena.Arena, "set_shared"),
            (sink.LogFile, "write"), (sink.LogFile, "open"), (sink.LogFile, "rotate"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self._step()
            result = function(*args, **kwargs)
            self._step()
            return result

        return stepping

    def _step(self) -> None:
        if os.getpid() == self._parent:
            return
        self.seen += 1
        if self.seen == self.wanted:
            os.kill(os.getpid(), signal.SIGKILL)


def read_json(path: Path) -> dict[str, bytes]:
    """What a json-file log and its rotated predecessors hold, by stream."""
    streams = {"stdout": b"", "stderr": b""}
    names = [path, *sorted(path.parent.glob(f"{path.name}.*"), key=lambda item: int(item.suffix[1:]))]
    for name in reversed(names):
        if not name.exists():
            continue
        for line in name.read_bytes().splitlines():
            entry = json.loads(line)
            streams[entry["stream"]] += entry["log"].encode("utf-8", "surrogateescape")
    return streams


def read_all(fd: int) -> bytes:
    """To the end of a stream."""
    data = b""
    while piece := os.read(fd, 1 << 16):
        data += piece
    return data


def available(fd: int, seconds: float = 0.0) -> bytes:
    """What a stream has to give, without waiting for more than seconds for the first of it."""
    data = b""
    while select.select([fd], [], [], seconds)[0]:
        piece = os.read(fd, 1 << 16)
        if not piece:
            break
        data += piece
        seconds = 0.0
    return data


@contextlib.contextmanager
def bench(directory: Path) -> Iterator[Bench]:
    made = Bench(directory)
    try:
        yield made
    finally:
        made.close()
