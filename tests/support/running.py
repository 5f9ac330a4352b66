"""Runs containers through an engine in this process and gathers what they say."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from wherry.api import Engine, ExecRequest, RunRequest, Stdio

#: Programs of the host that most tests need, as one image.
HOST = "host:" + ",".join(
    f"/bin/{name}"
    for name in (
        "sh",
        "true",
        "cat",
        "echo",
        "id",
        "ls",
        "sleep",
        "env",
        "stat",
        "touch",
        "mount",
        "hostname",
        "dd",
        "ps",
    )
)

#: By how much this machine is slower than others; contrib/vm says it of an emulated one.
SLOW = float(os.environ.get("WHERRY_TESTS_SLOW", "1"))


class Said(NamedTuple):
    """What a container or exec left: its exit code and its output."""

    code: int | None
    out: str
    err: str
    id: str


class _Pipe:
    """A pipe that is read on a thread of its own until its end."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self._data = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self._reader, 1 << 16):
            self._data += chunk
        os.close(self._reader)

    def text(self) -> str:
        self._thread.join(10 * SLOW)
        return self._data.decode(errors="replace")


def run(engine: Engine, *command: str, image: str = HOST, timeout: float = 20, **request: Any) -> Said:
    """Runs to the end; request are fields of RunRequest. The container removes itself unless remove=False."""
    request.setdefault("remove", True)
    asked = RunRequest(image=image, command=command or None, **request)
    return _finish(engine, lambda stdio: engine.run(asked, stdio).id, "", timeout)


def sh(engine: Engine, script: str, **request: Any) -> Said:
    """The same with a shell's script."""
    return run(engine, "/bin/sh", "-c", script, **request)


def execute(engine: Engine, container: str, *command: str, timeout: float = 20, **request: Any) -> Said:
    """An exec to its end."""
    asked = ExecRequest(command, **request)
    return _finish(engine, lambda stdio: engine.exec(container, asked, stdio), container, timeout)


def _finish(engine: Engine, start: Callable[[Stdio], str], container: str, timeout: float) -> Said:
    out, err = _Pipe(), _Pipe()
    try:
        id = start(Stdio(stdout=out.writer, stderr=err.writer))
    finally:
        os.close(out.writer)
        os.close(err.writer)
    exit = engine.wait(container or id, id if container else "", timeout * SLOW)
    assert exit is not None, "it did not end in time"
    return Said(exit.code, out.text(), err.text(), id)


def sleeper(engine: Engine, name: str = "", **request: Any) -> str:
    """A container that stays until it is told to go; its id. It ends at SIGTERM with 0, at SIGUSR1 with 7."""
    script = "trap 'exit 0' TERM; trap 'exit 7' USR1; while :; do sleep 0.05; done"
    id = engine.run(attrs.evolve(RunRequest(HOST, ("/bin/sh", "-c", script), name=name), **request)).id
    until_it_listens(engine, id)
    return id


def until_it_listens(engine: Engine, id: str) -> None:
    """Waits until a sleeper has set its traps: before, a signal is lost on it, or is its end (proc_pid_status(5), SigCgt)."""
    mask = 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1
    pid = engine.container(id).pid

    def listens() -> bool:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
        return caught & mask == mask

    until(listens, 30)


def until(true: Callable[[], object], seconds: float = 10) -> None:
    """Waits for something that happens soon."""
    deadline = time.monotonic() + seconds * SLOW
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
