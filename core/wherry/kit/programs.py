"""Programs of the host that a driver runs by the shim: for one call, with what they print, or for as long as a sandbox lives.

The engine never forks, so such a program is a child of the shim (``Plan.how`` "spawn"). Its id is the driver's, the ``id`` of its
Context and ".program", and its exec id a name of its own. The engine lets these tasks alone: whoever started one ends and
forgets it.

    programs = Programs(context.shim, context.id)
    done = programs.run(["/usr/lib/cni/bridge"], env={...}, stdin=config, seconds=20)
    task = programs.start("pasta-1f00", ["/usr/bin/pasta", ...])
    programs.end("pasta-1f00")
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from uuid import uuid4

from attrs import frozen

from wherry.errors import DeadlineExceeded, Error, FailedPrecondition, NotFound, Unavailable
from wherry.interfaces.process import Plan, Shim, Stdio, TaskState
from wherry.linux import pidfd

#: Of stdout and of stderr; what is beyond is read and dropped.
MOST_OUTPUT = 4 << 20
#: In the environment of each program and of what it leaves behind.
MARK = "WHERRY_PROGRAM"
#: How long output may stay open after the program has ended, and how long the kernel gets to end what was killed: seconds.
GRACE = 2.0
_DEFAULTS = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@frozen
class FinishedProgram:
    """What a program did. code as in ``Exit``; text is its stderr, for a person."""

    argv: tuple[str, ...]
    code: int | None
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stderr.decode(errors="replace").strip()

    @property
    def command(self) -> str:
        """Ready to paste."""
        return shlex.join(self.argv)


class Programs:
    """Those of one driver. Any thread may call any method."""

    def __init__(self, shim: Shim, owner: str) -> None:
        self._shim = shim
        self._owner = f"{owner}.program"
        self._lock = threading.Lock()
        self._running: set[str] = set()

    # for one call

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] = {}, stdin: bytes = b"", seconds: float
    ) -> FinishedProgram:
        """Runs a program to its end and answers what it printed.

        At the deadline it is killed with all that it started, which is DeadlineExceeded. What it leaves behind is killed when it
        keeps the program's output open for longer than GRACE after its end; a daemon that has closed it may stay. Raises
        CommandNotFound and CommandNotExecutable, Unavailable when the shim is lost.
        """
        name = uuid4().hex
        with self._lock:
            self._running.add(name)
        try:
            return self._run(name, tuple(argv), env, stdin, seconds)
        finally:
            with contextlib.suppress(Error):  # a shim that is lost has nothing to forget
                self._shim.forget(self._owner, name)
            with self._lock:
                self._running.discard(name)

    def _run(
        self, name: str, argv: tuple[str, ...], env: Mapping[str, str], stdin: bytes, seconds: float
    ) -> FinishedProgram:
        ours: list[int] = []
        theirs: list[int] = []
        try:
            source = os.memfd_create("stdin", os.MFD_CLOEXEC)
            theirs.append(source)
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
            for _ in range(2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                ours.append(reader)
                theirs.append(writer)
            plan = Plan(how="spawn", argv=argv, env=self._env(name, env))
            task = self._shim.spawn(self._owner, name, plan, Stdio(theirs[0], theirs[1], theirs[2]))
            while theirs:
                os.close(theirs.pop())
            out, err, ended = self._read(task, ours, seconds)
            if not ended:
                raise DeadlineExceeded(
                    f'program "{argv[0]}"', f"did not end within {seconds:g} seconds", "it was killed"
                )
            return FinishedProgram(argv, self._code(name), out, err)
        except BaseException:
            self.end(name)
            raise
        finally:
            for fd in (*ours, *theirs):
                os.close(fd)

    @staticmethod
    def _env(name: str, env: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(f"{key}={value}" for key, value in {**_DEFAULTS, **env, MARK: name}.items())

    @staticmethod
    def _read(task: TaskState, readers: Sequence[int], seconds: float) -> tuple[bytes, bytes, bool]:
        """(stdout, stderr, whether it ended)."""
        output = {fd: bytearray() for fd in readers}
        poll = select.poll()
        for fd in readers:
            poll.register(fd, select.POLLIN)
        handle = hold(task.pid, task.start_time)
        until = time.monotonic() + seconds
        open_, alive = set(readers), handle >= 0
        if alive:
            poll.register(handle, select.POLLIN)
        else:
            until = time.monotonic() + GRACE
        try:
            while (open_ or alive) and (left := until - time.monotonic()) > 0:
                for fd, _events in poll.poll(left * 1000):
                    if fd == handle:
                        poll.unregister(handle)
                        alive = False
                        until = min(until, time.monotonic() + GRACE)
                    elif piece := os.read(fd, 1 << 16):
                        if len(output[fd]) < MOST_OUTPUT:
                            output[fd] += piece
                    else:
                        poll.unregister(fd)
                        open_.discard(fd)
        finally:
            if handle >= 0:
                os.close(handle)
        if open_ and not alive:
            kill_marked(task.exec_id)
        out, err = (bytes(output[fd]) for fd in readers)
        return out, err, not alive

    def _code(self, name: str) -> int | None:
        """Of a program that has ended: the shim reaps it right away."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            task = self.find(name)
            if task is None:
                break
            if task.status == "stopped":
                return task.exit.code if task.exit is not None else None
            time.sleep(0.001)
        return None

    # for longer

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] = {},
        fds: Sequence[int] = (),
        stdio: Stdio = Stdio(),
    ) -> TaskState:
        """Starts a program that goes on when the call is over; name is its exec id and, in [a-zA-Z0-9_.-], unique among this
        driver's. fds become 3, 4, ... Raises CommandNotFound, CommandNotExecutable."""
        return self._shim.spawn(
            self._owner, name, Plan(how="spawn", argv=tuple(argv), env=self._env(name, env), fds=tuple(fds)), stdio
        )

    def find(self, name: str) -> TaskState | None:
        return next((task for task in self._shim.list(self._owner) if task.exec_id == name), None)

    def end(self, name: str, pid: int = 0, start_time: int = 0) -> None:
        """Kills a program and all that it started, and forgets it. pid and start_time find one that the shim has lost."""
        task = self.find(name)
        if task is not None:
            pid, start_time = task.pid, task.start_time
        if pid and (handle := hold(pid, start_time)) >= 0:
            try:
                pidfd.send_signal(handle, signal.SIGKILL)
                wait_end(handle, GRACE)
            except ProcessLookupError:
                pass
            finally:
                os.close(handle)
        kill_marked(name)
        if task is not None:
            self._code(name)  # until the shim has reaped it
        with contextlib.suppress(NotFound, FailedPrecondition, Unavailable):
            self._shim.forget(self._owner, name)

    def sweep(self, keep: Callable[[], Collection[str]] = tuple) -> int:
        """Ends this driver's programs but those named by keep and those of calls under way; how many.

        keep is asked once it is known which programs run: whoever notes a name before starting the program keeps it.
        """
        there = [task.exec_id for task in self._shim.list(self._owner)]
        with self._lock:
            known = self._running | set(keep())
        gone = [name for name in there if name not in known]
        for name in gone:
            self.end(name)
        return len(gone)


def hold(pid: int, start_time: int) -> int:
    """A pidfd of the process that pid and start time name, the caller's to close; -1 when it is gone."""
    if pid <= 0:
        return -1
    try:
        handle = pidfd.open(pid)
    except OSError:
        return -1
    try:
        if pidfd.start_time(pid) == start_time:
            return handle
    except OSError:
        pass
    os.close(handle)
    return -1


def wait_end(handle: int, seconds: float) -> bool:
    """Whether a process, by its pidfd, has ended within that time."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def kill_marked(name: str) -> None:
    """Kills every process that has a program's mark in its environment, until there is none, or GRACE has passed."""
    needle = f"{MARK}={name}".encode()
    until = time.monotonic() + GRACE
    while (found := _marked(needle)) and time.monotonic() < until:
        for pid in found:
            try:
                handle = pidfd.open(pid)
            except OSError:
                continue
            try:
                if _has(pid, needle):  # still the one that was found
                    pidfd.send_signal(handle, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(handle)
        time.sleep(0.001)


def _marked(needle: bytes) -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _has(int(entry), needle)]


def _has(pid: int, needle: bytes) -> bool:
    """False for a zombie too: its memory is gone."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return needle in (file.read() or b"").split(b"\0")
    except OSError:
        return False


__all__ = ["GRACE", "MARK", "MOST_OUTPUT", "FinishedProgram", "Programs", "hold", "kill_marked", "wait_end"]
