"""A container is a chroot in a mount namespace of its own: no shim, the driver's process is the parent.

What outlives a reopened driver, as a shim would hold it, is kept by directory in ``LIVES``.
"""

from __future__ import annotations

import errno
import json
import os
import signal as signals
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from contract.reference.state import NoConfig
from contract.reference.terminal import Terminal
from wherry.api import (
    Capabilities,
    CommandNotExecutable,
    CommandNotFound,
    Context,
    CreateRequest,
    Error,
    Exit,
    FailedPrecondition,
    NotFound,
    Registration,
    Stdio,
    TaskState,
)

HELD = Path(__file__).with_name("held.py")
LIVES: dict[Path, dict[tuple[str, str], Life]] = {}


def stat_fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Life:
    """One process from its creation to its deletion."""

    def __init__(
        self, id: str, exec_id: str, root: str, process: Mapping[str, Any], stdio: Stdio, target: int, inherit: bool
    ) -> None:
        self.id = id
        self.exec_id = exec_id
        self.root = root
        self.status = "created"
        self.exit: Exit | None = None
        self.ended = threading.Event()
        self.held_stdin = -1
        self.terminal = Terminal(stdio) if stdio.terminal else None
        streams = self.streams(stdio)
        ready, ready_end = os.pipe()
        go_end, self.go = os.pipe()
        self.report, report_end = os.pipe()
        order = {"process": dict(process), "root": root, "target": target}
        order |= {"ready": ready_end, "go": go_end, "report": report_end}
        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-S", HELD, json.dumps(order)],
            stdin=streams[0], stdout=streams[1], stderr=streams[2], pass_fds=() if inherit else (ready_end, go_end, report_end),
            close_fds=not inherit,
        )  # fmt: skip
        for fd in (ready_end, go_end, report_end):
            os.close(fd)
        if self.terminal or stdio.hold_stdin:
            os.close(streams[0])
        os.read(ready, 1)
        os.close(ready)
        self.start_time = int(stat_fields(self.popen.pid)[19])
        threading.Thread(target=self.reap, daemon=True).start()

    def streams(self, stdio: Stdio) -> tuple[int, int, int]:
        if self.terminal:
            return (self.terminal.slave,) * 3
        stdin = stdio.stdin
        if stdio.hold_stdin:
            stdin, self.held_stdin = os.pipe()
        return tuple(subprocess.DEVNULL if fd < 0 else fd for fd in (stdin, stdio.stdout, stdio.stderr))  # type: ignore[return-value]

    def reap(self) -> None:
        code = self.popen.wait()
        self.exit = Exit(128 - code if code < 0 else code, time.time_ns())
        self.status = "stopped"
        self.ended.set()

    def release(self) -> None:
        if self.status != "created":
            return
        os.write(self.go, b"g")
        problem = os.read(self.report, 16)
        if problem:
            self.ended.wait()
            command = f"exec {self.popen.args!r}"
            if int(problem) in {errno.ENOENT, errno.ENOTDIR}:
                raise CommandNotFound(command, os.strerror(int(problem)))
            raise CommandNotExecutable(command, os.strerror(int(problem)))
        if self.status == "created":
            self.status = "running"

    def close_stdin(self) -> None:
        if self.held_stdin >= 0:
            os.close(self.held_stdin)
            self.held_stdin = -1

    def drop(self) -> None:
        self.close_stdin()
        for fd in (self.go, self.report):
            os.close(fd)
        if self.terminal:
            self.terminal.close()

    def state(self) -> TaskState:
        pid = 0 if self.status == "stopped" else self.popen.pid
        return TaskState(self.id, self.exec_id, self.status, pid, self.start_time, self.id, self.exit)  # type: ignore[arg-type]


class ChrootIsolation:
    inherit = False

    def __init__(self, config: NoConfig, context: Context) -> None:
        self.context = context
        self.lives = LIVES.setdefault(context.root, {})

    def life(self, id: str, exec_id: str = "") -> Life:
        try:
            return self.lives[id, exec_id]
        except KeyError:
            raise NotFound(f"container {id!r}", "no such container or exec") from None

    def process(self, process: Mapping[str, Any]) -> Mapping[str, Any]:
        return process

    def make(
        self, id: str, exec_id: str, root: str, process: Mapping[str, Any], stdio: Stdio, target: int
    ) -> TaskState:
        life = Life(id, exec_id, root, self.process(process), stdio, target, self.inherit)
        self.lives[id, exec_id] = life
        return life.state()

    def create(self, request: CreateRequest) -> TaskState:
        return self.make(request.id, "", request.rootfs[0].source, request.spec["process"], request.stdio, 0)

    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        life = self.life(id)
        if life.status != "running":
            raise FailedPrecondition(f"container {id!r}", f"is {life.status}")
        state = self.make(id, exec_id, life.root, process, stdio, life.popen.pid)
        if start:
            try:
                self.start(id, exec_id)
            except Error:
                del self.lives[id, exec_id]
                raise
            return attrs.evolve(state, status="running")
        return state

    def start(self, id: str, exec_id: str = "") -> None:
        self.life(id, exec_id).release()

    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        life = self.life(id, exec_id)
        pids = self.pids(id) if all else (life.popen.pid,)
        for pid in pids:
            self.send(pid, signal)

    def send(self, pid: int, signal: int) -> None:
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            return

    def pause(self, id: str) -> None:
        self.life(id).status = "paused"
        self.kill(id, signals.SIGSTOP, all=True)

    def resume(self, id: str) -> None:
        self.life(id).status = "running"
        self.kill(id, signals.SIGCONT, all=True)

    def resize(self, id: str, rows: int, columns: int, exec_id: str = "") -> None:
        terminal = self.life(id, exec_id).terminal
        if terminal is not None:
            terminal.resize(rows, columns)

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        self.life(id, exec_id).close_stdin()

    def update(self, id: str, resources: Mapping[str, Any]) -> None:
        self.life(id)

    def stats(self, id: str) -> Mapping[str, int]:
        return {"pids.current": len(self.pids(id))}

    def pids(self, id: str) -> tuple[int, ...]:
        self.life(id)
        sessions = {life.popen.pid for (owner, _), life in self.lives.items() if owner == id}
        found = []
        for entry in os.listdir("/proc"):
            try:
                fields = stat_fields(int(entry)) if entry.isdigit() else []
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields and int(fields[3]) in sessions and fields[0] != "Z":
                found.append(int(entry))
        return tuple(found)

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        life = self.life(id, exec_id)
        return life.exit if life.ended.wait(timeout) else None

    def state(self, id: str, exec_id: str = "") -> TaskState:
        return self.life(id, exec_id).state()

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        if (id, exec_id) not in self.lives:
            return None
        life = self.life(id, exec_id)
        if not life.ended.is_set():
            if not force:
                raise FailedPrecondition(f"container {id!r}", "runs", "force kills it")
            self.kill(id, signals.SIGKILL, exec_id, all=not exec_id)
            life.ended.wait()
        for key in [key for key in self.lives if key == (id, exec_id) or (key[0] == id and not exec_id)]:
            self.lives.pop(key).drop()
        return life.exit

    def adopt(self) -> Iterator[TaskState]:
        return iter([life.state() for life in self.lives.values()])


def registration(driver: type[ChrootIsolation] = ChrootIsolation) -> Registration[NoConfig, ChrootIsolation]:
    flags = Capabilities(provides=frozenset({"exec", "exec-start", "pause"}))
    return Registration(id="reference", config=NoConfig, init=driver, capabilities=lambda config, context: flags)
