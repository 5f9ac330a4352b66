"""The Isolation Protocol over the shim and the container's cgroups."""

from __future__ import annotations

import json
import os
import select
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import attrs

from wherry.api import (
    Context,
    CreateRequest,
    Error,
    Exit,
    FailedPrecondition,
    IdMap,
    Invalid,
    Mount,
    NotFound,
    Plan,
    Stdio,
    TaskState,
    Unavailable,
)
from wherry.kit.isolation.plans import PlanTemplates
from wherry.kit.isolation.record import BundleLinks, TaskRecord
from wherry.kit.isolation.served import roots
from wherry.linux import caps, cgroup, pidfd, probe
from wherry.linux.cgroup1 import Group1
from wherry.linux.cgroup2 import Group2
from wherry.oci import compile, filters
from wherry.oci.compile import HostFacts
from wherry.oci.errors import SpecError
from wherry.oci.spec import device_rules

_SECCOMP = "io.wherry.seccomp"
_KILL = 9


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """A value of the wrong type or a missing key in what the caller gave is the caller's fault."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Invalid(what, f"{type(error).__name__}: {error}", "see the OCI runtime-spec, config-linux.md") from None


def _prune(parents: set[str]) -> None:
    """Removes the groups above containers' own that are ours by name and empty, when the driver is let go or the engine ends."""
    for path in parents:
        if os.path.basename(path).startswith("wherry-"):
            with suppress(OSError):  # containers live on in it, or it is gone
                os.rmdir(path)


def _own_filter(spec: Mapping[str, Any]) -> bool:
    """Whether it is Docker's default profile, or none."""
    profile = (spec.get("annotations") or {}).get(_SECCOMP, "unconfined")
    return not (spec.get("linux") or {}).get("seccomp") and profile in ("default", "unconfined")


class NamespaceOptions(Protocol):
    """A driver's config, as far as both have it."""

    @property
    def oom_score_adj(self) -> int | None: ...
    @property
    def kill_patience(self) -> float: ...


class NamespaceDriver:
    """Thread-safe. The shim is the authority on processes, the kernel on cgroups; records only save asking them."""

    def __init__(self, config: NamespaceOptions, context: Context) -> None:
        self._config = config
        self.context = context
        self.shim = context.shim
        self.layout = cgroup.detect()
        self._apparmor = probe.apparmor()
        cache = context.root / "seccomp"
        cache.mkdir(mode=0o700, exist_ok=True)
        self._filters = filters.Filters(cache)
        self._links = BundleLinks(context.run)
        self.records: dict[str, TaskRecord] = {}
        self.parents: set[str] = set()
        self._plans = PlanTemplates()
        self.close = weakref.finalize(self, _prune, self.parents)

    # create, start, exec

    def create(self, request: CreateRequest) -> TaskState:
        spec = request.spec
        group = self.group(request.id, spec, fresh=True)
        whole, bundle = self.with_defaults(spec), str(request.bundle)
        try:
            compiled = self._plans.compiled(
                self._compile, request.id, whole, request.rootfs, bundle, bool(request.sandbox_id)
            )
        except SpecError as error:
            raise Invalid(error.what, error.cause, error.hint) from None
        record = TaskRecord(request.id, request.sandbox_id, spec, group)
        resources = (spec.get("linux") or {}).get("resources") or {}
        with _readable("linux.resources"):
            group.create(self.resources({**resources, "devices": device_rules(resources.get("devices") or ())}))
        try:
            self._links.add(request.id, request.bundle, spec)
            with roots(self.shim, f"{self.context.id}.root.{request.id}", request.rootfs) as fds:
                plan = self._plan(compiled, group, sandbox_id=request.sandbox_id, fds=fds, start=request.start)
                state = self._spawn(request.id, "", plan, request.stdio)
        except BaseException:
            self._discard(record)
            raise
        record.pids[""] = (state.pid, state.start_time)
        self.records[request.id] = record
        return state

    def resources(self, resources: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of linux.resources is the control group's."""
        return resources

    def _compile(
        self, id: str, spec: Mapping[str, Any], rootfs: Sequence[Mount], bundle: str, sandboxed: bool
    ) -> compile.Compiled:
        host = self.host_facts(spec, self.group(id, spec, fresh=True), sandboxed=sandboxed)
        return compile.container(id, spec, rootfs, host, bundle=bundle)

    def start(self, id: str, exec_id: str = "") -> None:
        self.record(id, exec_id)
        self.shim.start(id, exec_id)

    def exec(
        self, id: str, exec_id: str, process: Mapping[str, Any], stdio: Stdio, *, start: bool = False
    ) -> TaskState:
        record = self.record(id)
        plan = self._exec_plan(record, process, start)
        if record.paused and record.group.frozen():
            raise FailedPrecondition(f'container "{id}"', "is paused", "resume it first")
        record.gone.discard(exec_id)
        state = self._spawn(id, exec_id, plan, stdio)
        if exec_id not in record.gone:  # it may have ended, and been deleted, before this thread had the answer
            record.pids[exec_id] = (state.pid, state.start_time)
        return state

    def _exec_plan(self, record: TaskRecord, process: Mapping[str, Any], start: bool) -> Plan:
        """The last one again where nothing differs, as with a health check."""
        if record.plan is None or record.plan[:2] != (process, start):
            try:
                host = self.host_facts({**record.spec, "process": process}, record.group)
                compiled = compile.exec(record.id, record.spec, process, host, start=start)
            except SpecError as error:
                raise Invalid(error.what, error.cause, error.hint) from None
            record.plan = process, start, self._plan(compiled, record.group, target=record.id, start=start)
        return record.plan[2]

    def _spawn(self, id: str, exec_id: str, plan: Plan, stdio: Stdio) -> TaskState:
        state = self.shim.spawn(id, exec_id, plan, stdio)
        if state.status == "stopped":  # one of the same name that the shim was not told to forget
            forget = getattr(self.shim, "forget", None)
            if forget is None:
                raise FailedPrecondition(f'container "{id}"', "the shim still has the one before it", "try again")
            forget(id, exec_id)
            state = self.shim.spawn(id, exec_id, plan, stdio)
        return state

    def with_defaults(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        score = self._config.oom_score_adj
        process = spec.get("process") or {}
        if score is None or process.get("oomScoreAdj") is not None:
            return spec
        return {**spec, "process": {**process, "oomScoreAdj": score}}

    def group(self, id: str, spec: Mapping[str, Any], *, fresh: bool) -> cgroup.Group:
        linux = spec.get("linux") or {}
        path = linux.get("cgroupsPath") or f"/wherry/{id}"
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path or path.strip("/") == "":
            raise Invalid(f'cgroupsPath "{path}"', "not an absolute path below the root of the hierarchy")
        group: cgroup.Group
        if self.layout.unified:
            group = Group2(self.layout, path)
        else:
            group = Group1(self.layout, path, (linux.get("resources") or {}) if fresh else None)
        self.parents.update(os.path.dirname(directory) for directory in group.directories)
        return group

    def host_facts(self, spec: Mapping[str, Any], group: cgroup.Group, *, sandboxed: bool = True) -> HostFacts:
        binds, links = group.binds() if isinstance(group, Group1) else ([], [])
        return HostFacts(
            sandboxed=sandboxed,
            unified=self.layout.unified,
            cgroup_binds=binds,
            cgroup_links=links,
            filter=self._filter(spec),
            spawns=_own_filter(spec),
            apparmor=self._apparmor,
        )

    def _filter(self, spec: Mapping[str, Any]) -> tuple[bytes, int] | None:
        """The OCI field linux.seccomp, else the annotation: "default", "unconfined" or a profile in Docker's form."""
        document = (spec.get("linux") or {}).get("seccomp")
        if document is None:
            profile = (spec.get("annotations") or {}).get(_SECCOMP, "unconfined")
            if profile == "unconfined":
                return None
            text, flags = "" if profile == "default" else profile, 0
        else:
            text, flags = json.dumps(document, sort_keys=True), filters.flags(document)
        names = ((spec.get("process") or {}).get("capabilities") or {}).get("bounding") or ()
        try:
            held = caps.mask(names)
        except KeyError as error:
            raise SpecError(f"capability {error}", "no such capability") from None
        try:
            return self._filters.compiled(text, held), flags
        except FileNotFoundError:
            raise FailedPrecondition(
                "seccomp", "libseccomp is not installed", "install the package libseccomp2"
            ) from None

    @staticmethod
    def _plan(
        compiled: compile.Compiled,
        group: cgroup.Group,
        *,
        sandbox_id: str = "",
        target: str = "",
        fds: tuple[int, ...] = (),
        start: bool = False,
    ) -> Plan:
        uids, gids = compiled.idmap
        return Plan(
            argv=compiled.argv,
            env=compiled.env,
            flags=compiled.flags,
            cgroups=group.directories,
            sandbox_id=sandbox_id,
            join=tuple(compiled.join),
            idmap=IdMap(uids, gids),
            steps=tuple(compiled.steps),
            fds=fds,
            target=target,
            hooks=compiled.hooks,
            start=start,
        )

    def record(self, id: str, exec_id: str = "") -> TaskRecord:
        record = self.records.get(id)
        if record is None:
            record = self._found_again(id)
        if record is None:
            raise NotFound(f'container "{id}"', "no such container")
        if exec_id in record.gone:
            raise NotFound(f'exec "{exec_id}" of container "{id}"', "no such process")
        return record

    def _found_again(self, id: str) -> TaskRecord | None:
        """A container of an engine before this one."""
        if not id or "/" in id or not (self.context.run / id).is_symlink():
            return None
        try:
            spec = self._links.spec(id)
        except FailedPrecondition:
            spec = {}
        record = TaskRecord(id, "", spec, self.group(id, spec, fresh=False))
        record.paused = record.group.frozen()
        return self.records.setdefault(id, record)

    # signals, freezer, limits

    def kill(self, id: str, signal: int, exec_id: str = "", *, all: bool = False) -> None:
        record = self.record(id, exec_id)
        if all:
            record.group.kill(signal)
        else:
            self.shim.signal(id, exec_id, signal)
        if signal == _KILL and record.paused:  # a frozen process dies once it is thawed
            self._thaw(record)

    def pause(self, id: str) -> None:
        record = self.record(id)
        with record.lock:
            if self._task(id, "").status != "running":
                raise FailedPrecondition(f'container "{id}"', "does not run")
            record.group.freeze(True)
            record.paused = True

    def resume(self, id: str) -> None:
        record = self.record(id)
        if not record.paused and not record.group.frozen():
            raise FailedPrecondition(f'container "{id}"', "is not paused")
        self._thaw(record)

    @staticmethod
    def _thaw(record: TaskRecord) -> None:
        with record.lock:
            record.group.freeze(False)
            record.paused = False

    def resize(self, id: str, rows: int, columns: int, exec_id: str = "") -> None:
        self.record(id, exec_id)
        self.shim.resize(id, exec_id, rows, columns)

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        self.record(id, exec_id)
        self.shim.close_stdin(id, exec_id)

    def update(self, id: str, resources: Mapping[str, Any]) -> None:
        record = self.record(id)
        with record.lock, _readable("resources"):
            record.group.apply(resources)

    def stats(self, id: str) -> Mapping[str, int]:
        return self.record(id).group.stats()

    def pids(self, id: str) -> tuple[int, ...]:
        return self.record(id).group.pids()

    # state and end

    def _task(self, id: str, exec_id: str) -> TaskState:
        for state in self.shim.list(id):
            if state.id == id and state.exec_id == exec_id:
                return state
        what = f'exec "{exec_id}" of container "{id}"' if exec_id else f'container "{id}"'
        raise NotFound(what, "the shim has no such process")

    def _seen(self, record: TaskRecord, state: TaskState) -> TaskState:
        """The shim's state with what the cgroup knows: frozen, and whether the kernel killed something for want of memory."""
        if state.exit is not None:
            known = record.exits.get(state.exec_id)
            if known is None:
                killed = state.exit.oom_killed or record.group.oom_kills() > 0
                known = record.exits[state.exec_id] = attrs.evolve(state.exit, oom_killed=killed)
            return attrs.evolve(state, exit=known)
        record.pids[state.exec_id] = (state.pid, state.start_time)
        if state.status == "running" and not state.exec_id and record.group.frozen():
            return attrs.evolve(state, status="paused")
        return state

    def state(self, id: str, exec_id: str = "") -> TaskState:
        record = self.record(id, exec_id)
        return self._seen(record, self._task(id, exec_id))

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> Exit | None:
        record = self.record(id, exec_id)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if (known := record.exits.get(exec_id)) is not None:
                return known
            state = self._seen(record, self._task(id, exec_id))
            if state.exit is not None:
                return state.exit
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._until_exit(state, left)

    def _until_exit(self, state: TaskState, left: float | None) -> None:
        """Sleeps on the pidfd, a second at most, so that the call's deadline is looked at; a moment when it is gone already."""
        self.context.checkpoint()
        pause = min(1.0, left) if left is not None else 1.0
        try:
            fd = pidfd.open(state.pid)
        except (ProcessLookupError, OSError):
            time.sleep(min(0.001, pause))
            return
        try:
            if pidfd.start_time(state.pid) == state.start_time:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                if not poll.poll(pause * 1000):
                    return
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)
        time.sleep(0.0005)  # the shim reaps it

    def delete(self, id: str, exec_id: str = "", *, force: bool = False) -> Exit | None:
        record = self.records.get(id) or self._found_again(id)
        if record is None:
            if force:
                self._end_unknown(id, exec_id)
            return None
        if exec_id:
            return self._delete_exec(record, exec_id, force)
        with record.lock:
            if not record.group.delete():
                self._end(record, force)
        ended = record.exits.get("")
        if ended is None and not force:
            ended = self._ended(record, "")
        self.records.pop(record.id, None)
        self._links.remove(record.id)
        return ended

    def _end_unknown(self, id: str, exec_id: str) -> None:
        """What the shim still has of that name: an engine that is gone made it, and did not get to note it, or had given it up."""
        deadline = time.monotonic() + self._config.kill_patience
        while time.monotonic() < deadline:
            left = [
                state
                for state in self.shim.list(id)
                if state.id == id and state.exec_id == exec_id and state.pid and state.exit is None
            ]
            if not left:
                return
            for state in left:
                with suppress(Error):  # it ended by itself meanwhile
                    self.shim.signal(id, state.exec_id, _KILL)
            time.sleep(0.002)

    def _end(self, record: TaskRecord, force: bool) -> None:
        """There are processes in the cgroup: a live container, or what outlived its first process."""
        try:
            state: TaskState | None = self._task(record.id, "")
        except (NotFound, Unavailable):
            state = None
        if not force and state is not None and state.status != "stopped":
            raise FailedPrecondition(f'container "{record.id}"', f"is {state.status}", "stop it, or delete it by force")
        deadline = time.monotonic() + self._config.kill_patience
        while True:
            record.group.kill(_KILL)
            if record.group.delete():
                break
            if time.monotonic() > deadline:
                raise FailedPrecondition(
                    f'container "{record.id}"', "its processes did not end", "one of them may hang in the kernel"
                )
            self.context.checkpoint()
            time.sleep(0.002)
        if state is not None:
            self._ended(record, "", patience=self._config.kill_patience)

    def _ended(self, record: TaskRecord, exec_id: str, patience: float = 0.0) -> Exit | None:
        """How a process ended, once the shim has reaped it; None when nobody knows."""
        deadline = time.monotonic() + patience
        while True:
            try:
                state = self._seen(record, self._task(record.id, exec_id))
            except (NotFound, Unavailable):
                return None
            if state.exit is not None or time.monotonic() >= deadline:
                return state.exit
            time.sleep(0.001)

    def _delete_exec(self, record: TaskRecord, exec_id: str, force: bool) -> Exit | None:
        if exec_id in record.gone:
            return None
        known = record.exits.get(exec_id)
        if known is None:
            try:
                state = self._task(record.id, exec_id)
            except (NotFound, Unavailable):
                return None
            if state.status != "stopped":
                if not force:
                    raise FailedPrecondition(f'exec "{exec_id}" of container "{record.id}"', f"is {state.status}")
                try:
                    self.shim.signal(record.id, exec_id, _KILL)
                except Error:
                    pass  # it ended by itself meanwhile
                known = self._ended(record, exec_id, patience=self._config.kill_patience)
            else:
                known = self._seen(record, state).exit
        record.exits.pop(exec_id, None)
        record.pids.pop(exec_id, None)
        record.gone.add(exec_id)
        return known

    def _discard(self, record: TaskRecord) -> None:
        """Forgets it and removes what is left of it; a cgroup with processes in it is killed first."""
        self.records.pop(record.id, None)
        deadline = time.monotonic() + self._config.kill_patience
        while not record.group.delete() and time.monotonic() < deadline:
            record.group.kill(_KILL)
            time.sleep(0.002)
        self._links.remove(record.id)

    def adopt(self) -> Iterator[TaskState]:
        known = set(self._links.ids())
        for state in list(self.shim.list()):
            if state.id not in known:
                continue
            record = self.record(state.id)
            record.sandbox_id = record.sandbox_id or state.sandbox_id
            yield self._seen(record, state)


__all__ = ["HostFacts", "NamespaceDriver", "NamespaceOptions"]
