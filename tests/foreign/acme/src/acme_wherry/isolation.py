"""An isolation without cgroups: everything about a container is read from its pid namespace.

For hosts where cgroups are not to be had. Limits are refused, never ignored.
"""

from __future__ import annotations

import json
import os
import signal as signals
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from wherry.api import (
    Capabilities,
    Context,
    CreateRequest,
    Exit,
    FailedPrecondition,
    IdMap,
    Invalid,
    NotFound,
    Plan,
    Registration,
    Stdio,
    TaskState,
    hookimpl,
)
from wherry.oci import compile

_LIMITS = ("memory", "cpu", "pids", "blockIO", "hugepageLimits")


@frozen
class GrouplessConfig:
    """[plugin.isolation.groupless] patience: seconds that a killed process may take to end."""

    patience: float = 10.0


class Groupless:
    """Implements ``wherry.api.Isolation``. What it must know after a restart is one file a container in its run directory."""

    def __init__(self, config: GrouplessConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._shim = context.shim
        self._lock = threading.Lock()
        self._gone: set[tuple[str, str]] = set()

    # create and start

    def create(self, request: CreateRequest) -> TaskState:
        asked = request.spec.get("linux", {}).get("resources", {})
        if refused := [name for name in _LIMITS if asked.get(name)]:
            raise Invalid(f"limits of {request.id!r}", f"{', '.join(refused)}: there are no cgroups here")
        compiled = compile.container(
            request.id, request.spec, request.rootfs, compile.HostFacts(sandboxed=True), bundle=str(request.bundle)
        )
        self._file(request.id).write_text(json.dumps(request.spec))
        try:
            return self._shim.spawn(request.id, "", self._plan(compiled, sandbox_id=request.sandbox_id), request.stdio)
        except BaseException:
            self._file(request.id).unlink()
            raise

    def exec(self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio) -> TaskState:
        spec = self._spec(id)
        compiled = compile.exec(id, spec, process, compile.HostFacts(sandboxed=True))
        self._gone.discard((id, exec_id))
        return self._shim.spawn(id, exec_id, self._plan(compiled, target=id), stdio)

    @staticmethod
    def _plan(compiled: compile.Compiled, *, sandbox_id: str = "", target: str = "") -> Plan:
        return Plan(
            argv=compiled.argv,
            env=compiled.env,
            flags=compiled.flags,
            sandbox_id=sandbox_id,
            join=tuple(compiled.join),
            idmap=IdMap(*compiled.idmap),
            steps=tuple(compiled.steps),
            target=target,
            hooks=compiled.hooks,
        )

    def _file(self, id: str) -> Path:
        return self._context.run / f"{id}.json"

    def _spec(self, id: str, exec_id: str = "") -> Any:
        try:
            text = self._file(id).read_text()
        except FileNotFoundError:
            text = ""
        if not text or (id, exec_id) in self._gone:
            raise NotFound(f"container {id!r}", "no such container" + (f" or exec {exec_id!r}" if exec_id else ""))
        return json.loads(text)

    def start(self, id: str, exec_id: str = "") -> None:
        self._spec(id, exec_id)
        self._shim.start(id, exec_id)

    # while it runs

    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        self._spec(id, exec_id)
        if not all:
            self._shim.signal(id, exec_id, signal)
            return
        for pid in self.pids(id):
            try:
                os.kill(pid, signal)
            except ProcessLookupError:
                continue

    def pause(self, id: str) -> None:
        raise Invalid(f"container {id!r}", "cannot be paused without the freezer cgroup")

    resume = pause

    def resize(self, id: str, rows: int, columns: int, exec_id: str = "") -> None:
        self._spec(id, exec_id)
        self._shim.resize(id, exec_id, rows, columns)

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        self._spec(id, exec_id)
        self._shim.close_stdin(id, exec_id)

    def update(self, id: str, resources: Mapping[str, Any]) -> None:
        self._spec(id)
        if refused := [name for name in _LIMITS if resources.get(name)]:
            raise Invalid(f"limits of {id!r}", f"{', '.join(refused)}: there are no cgroups here")

    def stats(self, id: str) -> Mapping[str, int]:
        page = os.sysconf("SC_PAGE_SIZE")
        resident = count = 0
        for pid in self.pids(id):
            try:
                resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
            except (FileNotFoundError, ProcessLookupError):
                continue
            count += 1
        return {"pids.current": count, "memory.current": resident}

    def pids(self, id: str) -> tuple[int, ...]:
        """The processes in the container's pid namespace."""
        first = self.state(id).pid
        own = _namespace(first) if first else ""
        return tuple(
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if own and _namespace(pid) == own
        )

    # the end

    def state(self, id: str, exec_id: str = "") -> TaskState:
        self._spec(id, exec_id)
        for state in self._shim.list():
            if (state.id, state.exec_id) == (id, exec_id):
                return state
        raise NotFound(f"container {id!r}", "the shim does not have it")

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (ended := self.state(id, exec_id).exit) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            self._context.checkpoint()
            time.sleep(0.005)
        return ended

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        try:
            state = self.state(id, exec_id)
        except NotFound:
            return None
        if state.exit is None:
            if not force:
                raise FailedPrecondition(f"container {id!r}", f"is {state.status}", "stop it first")
            try:
                self._shim.signal(id, exec_id, signals.SIGKILL)  # PID 1 takes its whole namespace with it
            except FailedPrecondition:
                pass  # it has just ended
        ended = self.wait(id, exec_id, self._config.patience)
        if ended is None:
            raise FailedPrecondition(f"container {id!r}", "does not end", "a process hangs in the kernel")
        if exec_id:
            self._gone.add((id, exec_id))
        else:
            self._file(id).unlink(missing_ok=True)
        return ended

    def adopt(self) -> Iterator[TaskState]:
        known = {path.stem for path in self._context.run.glob("*.json")}
        return iter([state for state in self._shim.list() if state.id in known])


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


@hookimpl
def wherry_isolation() -> Registration[GrouplessConfig, Groupless]:
    provides = Capabilities(provides=frozenset({"exec", "netns"}))
    return Registration(
        id="groupless",
        config=GrouplessConfig,
        init=Groupless,
        probe=lambda config, context: None if context.uid == 0 else "needs root",
        capabilities=lambda config, context: provides,
    )
