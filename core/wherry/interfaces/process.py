"""How a process starts and where its streams go: what isolation drivers hand to the shim, as data.

Lifecycle: ``create_sandbox`` makes the namespaces that a pod shares; ``spawn`` starts a plan's process and holds it before
execve; ``start`` releases it; its exit arrives as the event "task.exited"; ``remove_sandbox`` lets the namespaces go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from attrs import field, frozen

from wherry.interfaces.common import Event, IdMap


@frozen
class LogSink:
    """What a log driver hands over; the logger (a child of the shim) writes it without any plugin code.

    format: one of the logger's own framings, or "raw-fd": unframed bytes to a collector's ``fd``. max_size is in bytes, 0
    never rotates; max_file counts the files kept. when_full says what a full collector does to the container.
    """

    format: Literal["json-file", "local", "raw-fd", "none"]
    path: str = ""
    fd: int = -1
    max_size: int = 0
    max_file: int = 1
    when_full: Literal["block", "drop"] = "block"


@frozen
class Stdio:
    """Streams of one process. fds belong to the caller and are duplicated into the shim (SCM_RIGHTS); -1 is /dev/null.

    With terminal the child opens the pty inside the container and stderr is ignored; shim and logger both hold the master.
    log may be set beside fds: then both get every byte, by the logger. hold_stdin keeps the stdin of a container open with no
    writer attached, as ``docker run -i -d`` does; in ``attach``: after this writer's end of file, too. attachable: the streams go
    through the logger even where nothing is recorded, so that ``attach`` works later; without it and without log, terminal and
    hold_stdin the child gets the fds themselves. token: a name that the caller gives these fds, unlike any other one's, by which
    ``detach`` drops them; "" where nobody will.
    """

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    terminal: bool = False
    rows: int = 0
    columns: int = 0
    log: LogSink = LogSink("none")
    hold_stdin: bool = False
    attachable: bool = False
    token: str = ""


class Step(Protocol):
    """One frozen action of the step list that makes a container, from ``wherry.oci.steps``; data only."""

    def describe(self) -> str:
        """One line for a person, in the words of the system call it becomes."""
        ...

    def encode(self) -> tuple[object, ...]:
        """(name, argument, ...): what JSON can carry to the shim."""
        ...


@frozen
class Plan:
    """How one process starts.

    how: "clone" is clone3(2) with steps; "spawn" runs argv as a plain process of the host (a VM monitor, runsc); "adopt"
    names, by pid and start_time, a process that is there already (left by a delegated runtime, a descendant of the shim).
    flags: CLONE_NEW* for clone3. sandbox_id and join (nsfs paths) are entered first. cgroups: directories; on v2 by
    CLONE_INTO_CGROUP, on v1 by the child writing "0" to ``tasks``. idmap: of a new user namespace. fds become 3, 4, ...
    target: the id of a running container whose namespaces the process enters by pidfd, all of them: exec. hooks: those that
    the shim runs in the runtime's namespaces: {"prestart": [...], "createRuntime": [...]} as in the OCI runtime-spec, and
    "state", the OCI state they get on stdin (the shim adds pid and status). start: it is started as soon as it is ready, and
    ``Shim.spawn`` returns then, unless it has hooks.
    """

    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    how: Literal["clone", "spawn", "adopt"] = "clone"
    flags: int = 0
    cgroups: tuple[str, ...] = ()
    sandbox_id: str = ""
    join: tuple[str, ...] = ()
    idmap: IdMap = IdMap()
    steps: tuple[Step, ...] = ()
    fds: tuple[int, ...] = ()
    pid: int = 0
    start_time: int = 0
    target: str = ""
    hooks: Mapping[str, Any] = field(factory=dict)
    start: bool = False


@frozen
class Exit:
    """How a process ended. code is 0-255, or 128+n for signal n; None is unknown (the shim was lost), never invented."""

    code: int | None
    time: int
    oom_killed: bool = False


@frozen
class TaskState:
    """The state of one process (OCI runtime-spec, runtime.md, "State"), with exec id and "paused".

    exec_id is "" for the container's first process. pid is in the engine's pid namespace, 0 once stopped; start_time is
    field 22 of /proc/PID/stat in clock ticks: with pid it identifies the process. user is what the child resolved, "uid:gid".
    """

    id: str
    exec_id: str
    status: Literal["creating", "created", "running", "paused", "stopped"]
    pid: int
    start_time: int
    sandbox_id: str = ""
    exit: Exit | None = None
    user: str = ""


@frozen
class Sandbox:
    """What the containers of a pod share (a lone container: a sandbox of one); the shim holds it as fds.

    netns as in ``Reservation.netns``. ipc, uts: own ones, else the host's. pid: one for all members, whose PID 1 is a pause
    process. A non-empty idmap makes a user namespace first, so that it owns the others.
    """

    id: str
    netns: str = ""
    ipc: bool = True
    uts: bool = True
    pid: bool = False
    idmap: IdMap = IdMap()
    cgroup_parent: str = ""
    hostname: str = ""


class Shim(Protocol):
    """Parent of all container processes: the only way in which a driver starts one that shall outlive the engine.

    spawn, start and create_sandbox are idempotent by id (and exec_id): a repeat answers what the first did. fds that come
    back are the caller's to close. A driver's own process, which is no container's, has an id that begins with the driver's
    context.id and a dot ("network.bridge.netd"): only that driver ends it, and the shim may end before it does. With an exec id it
    is also the driver that forgets it (``wherry.kit.programs``); without one it is forgotten as soon as it has ended.

    Errors: NotFound, AlreadyExists, InUse, FailedPrecondition, CommandNotFound, CommandNotExecutable, Unavailable (no shim
    answers), OSError for a failed system call with the step that made it.
    """

    def create_sandbox(self, sandbox: Sandbox) -> Sandbox: ...
    def remove_sandbox(self, id: str) -> None:
        """InUse while it has members; nothing happens when it is gone."""
        ...

    def sandboxes(self) -> Iterator[Sandbox]: ...
    def namespace(self, sandbox_id: str, type: Literal["net", "ipc", "uts", "user", "pid"]) -> int:
        """An nsfs file descriptor."""
        ...

    def socket(self, sandbox_id: str, family: int, type: int, protocol: int) -> int:
        """A socket opened in the sandbox's network namespace: netlink without entering it."""
        ...

    def spawn(self, id: str, exec_id: str, plan: Plan, stdio: Stdio) -> TaskState:
        """clone: the process is created and held before execve; spawn and adopt: it runs. A clone that is not to be held runs too,
        or raises what start would, and there is nothing to forget."""
        ...

    def start(self, id: str, exec_id: str) -> None:
        """Releases the process; returns once execve succeeded, raises CommandNotFound and such when it did not."""
        ...

    def signal(self, id: str, exec_id: str, signal: int) -> None: ...
    def resize(self, id: str, exec_id: str, rows: int, columns: int) -> None: ...
    def close_stdin(self, id: str, exec_id: str) -> None: ...
    def attach(self, id: str, exec_id: str, stdio: Stdio) -> str:
        """Adds a reader and writer of the streams; answers a token for ``detach``, the caller's own where it gave one.
        AlreadyExists when that is in use."""
        ...

    def detach(self, id: str, exec_id: str, token: str) -> None:
        """Drops the fds of one attach or spawn ("" drops those given to spawn without a token); nothing happens when they are
        gone."""
        ...

    def list(self, id: str = "") -> Iterator[TaskState]:
        """The processes of one container, or of all."""
        ...

    def forget(self, id: str, exec_id: str) -> None:
        """Drops a stopped process: the engine a container's, once its exit record is stored, a driver one of its own. Nothing
        happens when it is gone."""
        ...


class ShimControl(Shim, Protocol):
    """The engine's own side of the shim, never given to a driver."""

    def events(self, after: int) -> Iterator[Event]:
        """The shim's own numbering; replays what no ack covers, then follows. task.exited carries "exec_id", "code", "oom_killed"."""
        ...

    def ack(self, sequence: int) -> None:
        """Everything up to sequence is durable in the engine's database."""
        ...

    def replace(self) -> None:
        """exec of the newer version; children are kept."""
        ...
