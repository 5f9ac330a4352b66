"""A logger under a keeper in the test's own process, so that a test can kill it at any of its steps; and real shims."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.api import Event, Mount, Plan, Stdio, TaskState
from wherry.engine.shim.client import start_shim
from wherry.linux.loop import Loop
from wherry.oci import compile
from wherry.shim import arena, logfile, pipes
from wherry.shim.journal import Journal
from wherry.shim.logger_supervisor import LoggerSupervisor
from wherry.shim.streams import TaskStreams


class Bench:
    """A keeper and its logger (a fork of this process); the test turns the loop itself."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.drained: list[tuple[str, bool]] = []
        self.keeper = LoggerSupervisor(
            self.loop, str(directory / "logger.sock"), lambda key, eof: self.drained.append((key, eof))
        )
        self.directory = directory
        self._ours: list[int] = []

    def start(self) -> None:
        self.keeper.open(Journal())

    def streams(self, key: str, log: dict[str, Any] | None, *, hold: bool = False) -> tuple[TaskStreams, int, int, int]:
        """New streams with stdout, stderr and stdin: (streams, the container's stdout, its stderr, its stdin)."""
        streams = TaskStreams(key, self.keeper.slots.take(), False, hold, json.dumps(log) if log else "")
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
            (logfile.LogFile, "write"), (logfile.LogFile, "open"), (logfile.LogFile, "rotate"),
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


# -- real shims


class Shimmed:
    """A shim of its own, by its client, and the events that came."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.client = start_shim(run, run / "root")
        self._events = self.client.events(0)
        self._exits: dict[tuple[str, str], Event] = {}

    def spawn(self, id: str, script: str, stdio: Stdio = Stdio(), *, exec_id: str = "") -> TaskState:
        """A shell script as a process of the host."""
        plan = Plan(how="spawn", argv=("/bin/sh", "-c", script), env=("PATH=/usr/bin:/bin",))
        return self.client.spawn(id, exec_id, plan, stdio)

    def _process(self, script: str, argv: tuple[str, ...], terminal: bool) -> dict[str, Any]:
        return {
            "args": list(argv) or ["/bin/sh", "-c", script],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
        }

    def container(
        self,
        id: str,
        script: str,
        stdio: Stdio = Stdio(),
        *,
        argv: tuple[str, ...] = (),
        terminal: bool = False,
        sandbox: str = "",
        shared_pid: bool = False,
        hooks: dict[str, Any] | None = None,
        start: bool = False,
    ) -> TaskState:
        """A container over the host's own root, with /proc, /dev and a pts of its own."""
        types = ["mount", "pid", "network", "ipc", "uts"]
        if shared_pid:
            types.remove("pid")
        spec = {
            "process": self._process(script, argv, terminal),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ],
            "linux": {"namespaces": [{"type": kind} for kind in types]},
            "hooks": hooks or {},
        }
        root = Mount("bind", "/", "", ("rbind",))
        made = compile.container(id, spec, [root], compile.HostFacts(sandboxed=bool(sandbox)))
        plan = Plan(
            argv=made.argv,
            env=made.env,
            flags=made.flags,
            steps=tuple(made.steps),
            sandbox_id=sandbox,
            hooks=made.hooks,
            start=start,
        )
        return self.client.spawn(id, "", plan, stdio)

    def exec(
        self,
        id: str,
        exec_id: str,
        script: str,
        stdio: Stdio = Stdio(),
        *,
        start: bool = False,
        argv: tuple[str, ...] = (),
    ) -> TaskState:
        spec = {"linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts")]}}
        made = compile.exec(id, spec, self._process(script, argv, False), compile.HostFacts(spawns=True), start=start)
        plan = Plan(argv=made.argv, env=made.env, steps=tuple(made.steps), target=id, start=start)
        return self.client.spawn(id, exec_id, plan, stdio)

    def exit(self, id: str, exec_id: str = "") -> Event:
        """The task's exit event, whenever it came."""
        while (id, exec_id) not in self._exits:
            event = next(self._events)
            if event.topic == "task.exited":
                self._exits[event.id, event.attributes["exec_id"]] = event
        return self._exits[id, exec_id]

    def end(self, id: str, exec_id: str = "") -> None:
        """Kills and forgets."""
        self.client.signal(id, exec_id, signal.SIGKILL)
        self.exit(id, exec_id)
        self.client.forget(id, exec_id)

    def listen_again(self) -> None:
        """A stream of the shim that is there now."""
        self._events.close()
        self._events = self.client.events(0)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            for state in self.client.list():
                if state.status != "stopped":
                    with contextlib.suppress(Exception):
                        self.client.signal(state.id, state.exec_id, signal.SIGKILL)
            eventually(lambda: all(state.status == "stopped" for state in self.client.list()))
            for box in self.client.sandboxes():
                self.client.remove_sandbox(box.id)
        self.client.quit()
        self._events.close()
        self.client.close()


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for condition to hold."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


@contextlib.contextmanager
def shimmed() -> Iterator[Shimmed]:
    """A shim in a short directory of its own; what it said on stderr fails the test."""
    with tempfile.TemporaryDirectory(prefix="wherry-", dir="/tmp") as directory:
        made = Shimmed(Path(directory))
        try:
            yield made
        finally:
            made.close()
            said = (Path(directory) / "shim.log").read_text()
        assert "Traceback" not in said, said
