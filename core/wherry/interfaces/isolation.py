"""The isolation kind: turns an OCI spec into a process that is held, started, signalled and gone.

After containerd's task API v3 and the OCI runtime-spec, runtime.md. ``create`` compiles spec and mounts into a Plan and has
the shim spawn it: PID 1 is held before execve with its namespaces in place, so that networking can run; ``start`` releases it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen

from wherry.interfaces.common import Mount
from wherry.interfaces.process import Exit, Stdio, TaskState


@frozen
class CreateRequest:
    """What a container is made of.

    sandbox_id: the own id, or the pod's. bundle holds config.json (the merged spec), hosts, hostname and resolv.conf. spec is
    the same as config.json, as plain JSON data, with one addition: ``process.user.username`` may be "name[:group]" or
    "uid[:gid]" from the image or the request, which the child resolves inside the container's root and which then wins over
    uid and gid. rootfs mounts become steps of the plan: the container's process makes them in its own mount namespace. start: the
    caller has nothing to do between create and start, so a driver may let the process go by itself, and answers then that it is
    running, or raises what start would and leaves nothing; one that answers "created" is told to start it as ever.
    """

    id: str
    sandbox_id: str
    bundle: Path
    spec: Mapping[str, Any]
    rootfs: tuple[Mount, ...]
    stdio: Stdio
    start: bool = False


class Isolation(Protocol):
    """exec works like create, by exec_id, then start. delete succeeds when the thing is gone; the others raise NotFound."""

    def create(self, request: CreateRequest) -> TaskState: ...
    def start(self, id: str, exec_id: str = "") -> None: ...
    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        """process is the OCI ``process`` object. FailedPrecondition when the container does not run.

        start: it is started at once, in place of a call of start. Asked only of drivers that provide the flag "exec-start".
        """
        ...

    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        """all: every process of the container's cgroup."""
        ...

    def pause(self, id: str) -> None:
        """Returns once every process stands still. FailedPrecondition by a driver without the flag "pause"."""
        ...

    def resume(self, id: str) -> None: ...
    def resize(self, id: str, rows: int, columns: int, exec_id: str = "") -> None:
        """The terminal's size in characters."""
        ...

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        """The process reads the end of its input, once all that was written before has been read."""
        ...

    def update(self, id: str, resources: Mapping[str, Any]) -> None:
        """resources is the OCI ``linux.resources`` object."""
        ...

    def stats(self, id: str) -> Mapping[str, int]:
        """Names are those of cgroup v2: "memory.current", "cpu.usage_usec", "pids.current", "io.rbytes" and "io.wbytes" (sums
        over all devices)."""
        ...

    def pids(self, id: str) -> tuple[int, ...]:
        """Every process in it, by the host's numbers."""
        ...

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        """None when timeout (seconds) ran out first. The kernel itself listens to "task.exited"."""
        ...

    def state(self, id: str, exec_id: str = "") -> TaskState: ...
    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        """Takes down what create made. FailedPrecondition while it runs, unless force kills it."""
        ...

    def adopt(self) -> Iterator[TaskState]:
        """After an engine restart: all that is still there."""
        ...


class Checkpointer(Protocol):
    """Flag "checkpoint"."""

    def checkpoint(self, id: str, directory: Path, *, exit: bool) -> None: ...
    def restore(self, request: CreateRequest, directory: Path) -> TaskState: ...
