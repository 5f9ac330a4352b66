"""One process of a container: its record, and the plain spawn of a plan that needs no clone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket

from wherry.linux import pidfd
from wherry.shim.wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from wherry.linux.loop import Timer
    from wherry.shim.server import Reply
    from wherry.shim.streams import TaskStreams

_SIGNALS = range(1, 32)
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class Task:
    """status: creating (the child prepares), created (it waits), running, stopped. code None: not ended, or unknown.

    waiting: replies due at the next step. held: of the exit event, until the output has arrived.
    owed: the exit event waits for those of the container's execs.
    """

    __slots__ = (
        "channel", "code", "direct", "error", "exec_id", "foreign", "forgotten", "held", "hooks", "id", "oom", "owed", "pid", "pidfd",
        "protected", "sandbox_id", "size", "starting", "start_time", "status", "stopped_at", "streams", "user", "waiting",
    )  # fmt: skip

    def __init__(self, id: str, exec_id: str, sandbox_id: str) -> None:
        self.id = id
        self.exec_id = exec_id
        self.sandbox_id = sandbox_id
        self.status = "creating"
        self.pid = 0
        self.start_time = 0
        self.pidfd = -1
        self.user = ""
        self.code: int | None = None
        self.stopped_at = 0
        self.oom = False
        self.protected = False  # its plan leaves it the shim's own score of the OOM killer
        self.direct = False  # it starts by itself, and its spawn is answered then
        self.starting = False
        self.forgotten = False
        self.foreign = False  # not a child of ours
        self.error: dict[str, Any] | None = None
        self.channel: socket.socket | None = None
        self.size = (0, 0)
        self.hooks: dict[str, Any] | None = None
        self.streams: TaskStreams | None = None
        self.held: Timer | None = None
        self.owed: bool | None = None  # its exit event, but for the ends of its execs: whether it is drained
        self.waiting: tuple[Reply, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.id}/{self.exec_id}"

    @property
    def name(self) -> str:
        return f'exec "{self.exec_id}" of container "{self.id}"' if self.exec_id else f'container "{self.id}"'

    def adopt(self, pid: int, start_time: int) -> None:
        """Becomes the task of a process that runs already. start_time 0: whenever it started. Fault."""
        try:
            self.pidfd = pidfd.open(pid)
            self.start_time = pidfd.start_time(pid)
        except ProcessLookupError:
            raise Fault("NotFound", f"process {pid}", "no such process") from None
        if start_time and start_time != self.start_time:
            os.close(self.pidfd)
            raise Fault("FailedPrecondition", f"process {pid}", "started at another time: the pid was used again")
        self.pid, self.status = pid, "running"

    def more(self) -> bool:
        """Whether its child has said something that was not read yet, and that still matters."""
        if self.channel is None or self.error is not None:
            return False
        try:
            return bool(self.channel.recv(1, _PEEK))
        except OSError:
            return False

    def state(self) -> dict[str, Any]:
        """A wherry.api.TaskState as JSON."""
        stopped = self.status == "stopped"
        return {
            "id": self.id,
            "exec_id": self.exec_id,
            "status": self.status,
            "pid": 0 if stopped else self.pid,
            "start_time": self.start_time,
            "sandbox_id": self.sandbox_id,
            "user": self.user,
            "exit": {"code": self.code, "time": self.stopped_at, "oom_killed": self.oom} if stopped else None,
        }


def find(name: str, env: dict[str, str]) -> str:
    """The program an argv[0] without a slash means, by PATH."""
    if "/" in name:
        return name
    for part in env.get("PATH", os.defpath).split(":"):
        path = f"{part or '.'}/{name}"
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    raise Fault("CommandNotFound", f'exec "{name}"', "executable file not found in $PATH")


def plain_spawn(plan: dict[str, Any], stdio: Sequence[int], fds: Sequence[int]) -> tuple[int, int]:
    """posix_spawn(3) of a plan's argv as a process of the host: (pid, pidfd). It runs at once.

    fds become 3, 4, ... Raises Fault of class CommandNotFound or CommandNotExecutable, OSError.
    """
    argv = plan["argv"]
    if not argv:
        raise Fault("Invalid", "plan", "argv is empty")
    env = dict(item.partition("=")[::2] for item in plan.get("env") or ())
    wanted = (*stdio, *fds)
    high: list[int] = []
    try:
        for fd in wanted:  # above all targets, so that no dup2 overwrites the source of a later one
            high.append(_above(fd, len(wanted) + 3))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        try:
            pid = os.posix_spawn(
                find(argv[0], env), argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_SIGNALS
            )
        except FileNotFoundError:
            raise Fault("CommandNotFound", f'exec "{argv[0]}"', "no such file or directory") from None
        except OSError as error:
            if error.errno in (8, 13):  # ENOEXEC, EACCES
                raise Fault("CommandNotExecutable", f'exec "{argv[0]}"', (error.strerror or "").lower()) from None
            raise
    finally:
        for fd in high:
            os.close(fd)
    handle = pidfd.open(pid)  # not reaped yet: only this thread does that
    for directory in plan.get("cgroups") or ():
        _enter(directory, pid)
    return pid, handle


def _above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def _enter(directory: str, pid: int) -> None:
    fd = os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(pid).encode())
    finally:
        os.close(fd)


def same_process(pid: int, start_time: int) -> int:
    """A pidfd of the process that pid and start time name, -1 when it is gone."""
    if pid <= 0:
        return -1
    with contextlib.suppress(OSError):
        handle = pidfd.open(pid)
        with contextlib.suppress(OSError):
            if pidfd.start_time(pid) == start_time and not ended(handle):
                return handle
        os.close(handle)
    return -1


def ended(handle: int) -> bool:
    """Whether a process is a zombie, or was reaped."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def exit_code(fd: int) -> int | None:
    """0-255, or 128+n, of a reaped process by its pidfd; None while it is not to be had. OSError before Linux 6.15."""
    status = pidfd.exit_status(fd)
    if status is None:
        return None
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
