"""run, start, stop, kill, pause, resume, remove and wait."""

from __future__ import annotations

import time
from functools import partial
from threading import RLock

from wherry.api import Container, Event, Exit, FailedPrecondition, InUse, NotFound, RunRequest, Stdio
from wherry.engine.containers import signals
from wherry.engine.containers.create import ContainerDraft, Creator, ReadyContainer, must_not_be_removing
from wherry.engine.containers.exits import ExitHandler
from wherry.engine.containers.names import new_id
from wherry.engine.containers.records import ContainerRecord, ExitEvent
from wherry.engine.containers.start import Starter
from wherry.engine.networks.attach import Attacher, EndpointSet
from wherry.engine.state.state import State, attributes
from wherry.engine.state.undo import Undo, attempt

KILL = 9
#: After SIGKILL an end comes at once, unless a process hangs in the kernel.
KILL_SECONDS = 30.0


class Containers:
    def __init__(
        self, state: State, creation: Creator, attaching: Attacher, starting: Starter, ending: ExitHandler
    ) -> None:
        self._state = state
        self._creation = creation
        self._attaching = attaching
        self._starting = starting
        self._ending = ending

    def create(self, request: RunRequest) -> Container:
        id = new_id()
        undo = Undo()
        with (lock := RLock()), self._state.traced(id, request.trace):
            try:
                return self._creation.create(request, id, lock, undo=undo).view()
            except BaseException as error:
                self._state.report(undo.run(), "undo of create")
                self._name(error, request, id, gone=True)
                raise

    def run(self, request: RunRequest, stdio: Stdio) -> Container:
        """While this side looks for the image, the shim makes the sandbox."""
        id = new_id()
        making, starting = Undo(), Undo()
        found: list[ReadyContainer] = []
        # Held until the container runs, or the last trace of it is undone: whoever finds it by its name meanwhile waits.
        with (lock := RLock()), self._state.traced(id, request.trace):
            try:
                begun = self._creation.begin(request, id, lock, undo=making)
                self._state.kernel.together(self._make, begun, stdio, making, starting, found)
                return begun.record.view()
            except BaseException as error:
                self._state.report(starting.run(), f"undo of start of container {id[:12]}")
                created = found[0] if found else None
                if created is None or request.remove or not isinstance(error, Exception):
                    self._state.report(making.run(), f"undo of create of container {id[:12]}")
                    self._name(error, request, id, gone=True)
                else:
                    self._starting.failed(created, error)
                    self._name(error, request, id, gone=False)
                raise

    def _name(self, error: BaseException, request: RunRequest, id: str, *, gone: bool) -> None:
        """Has the error tell whose spans there are, where they were asked for: nobody knows the id of what never was."""
        if request.trace:
            error.container = id  # type: ignore[attr-defined]
            if gone:
                self._state.drop_spans(id)

    def _make(
        self, begun: ContainerDraft, stdio: Stdio, making: Undo, starting: Undo, found: list[ReadyContainer]
    ) -> None:
        """All that calls drivers. found gets what was created, though the start may fail after that."""
        net = self._reserve(begun, starting)
        found.append(self._creation.complete(begun, undo=making, durable=not begun.request.remove))
        if isinstance(net, Exception):
            raise net
        self._starting.start(found[0], net, stdio, undo=starting)

    def _begin(self, created: ReadyContainer, stdio: Stdio, undo: Undo) -> None:
        self._starting.start(created, self._attaching.reserve(created, undo=undo), stdio, undo=undo)

    def _reserve(self, begun: ContainerDraft, undo: Undo) -> EndpointSet | Exception:
        """What goes wrong here is a failed start, which leaves a container, and not a failed create: so it is told later."""
        try:
            return self._attaching.reserve(begun, undo=undo)
        except Exception as error:
            return error

    def start(self, name: str, stdio: Stdio) -> Container:
        record = self._state.registry.find(name)
        with record.lock, self._state.traced(record.id, record.traced):
            must_not_be_removing(record)
            if record.status == "paused":
                raise FailedPrecondition(f'container "{record.name}"', "is paused", "unpause it instead")
            if record.live:  # as docker: to start what runs changes nothing, but whoever brings streams is attached
                if max(stdio.stdin, stdio.stdout, stdio.stderr) >= 0:
                    self._state.shim.attach(record.id, "", stdio)
                return record.view()
            created = self._creation.again(record)
            undo = Undo()
            try:
                self._state.kernel.together(self._begin, created, stdio, undo)
            except BaseException as error:
                self._state.report(undo.run(), f"undo of start of container {record.id[:12]}")
                if not isinstance(error, Exception):
                    raise
                if record.remove:
                    self._ending.remove(record)
                else:
                    self._starting.failed(created, error)
                raise
            return record.view()

    # signals

    def stop(self, name: str, timeout: float | None, signal: str) -> Container:
        record = self._state.registry.find(name)
        if not record.live:
            return record.view()
        number = signals.parse(signal or record.stop_signal or "TERM")
        seconds = record.stop_timeout if timeout is None else timeout
        gate = record.gate
        self._signal(record, number)
        if record.status == "paused":
            self._thaw(record)
        if not gate.wait(None if seconds < 0 else seconds):
            self._signal(record, KILL, all=True)
            if not gate.wait(KILL_SECONDS):
                raise FailedPrecondition(
                    f'container "{record.name}"', "did not end though it was killed", "a process may hang in the kernel"
                )
        return record.view()

    def kill(self, name: str, signal: str, exec_id: str) -> None:
        record = self._running(name)
        number = signals.parse(signal)
        if exec_id:
            exec = record.execs.get(exec_id)
            if exec is None or exec.gate.is_set():
                raise NotFound(f'exec "{exec_id}"', f'no such exec in container "{record.name}"')
            self._state.isolation(record).kill(record.id, number, exec_id)
            return
        self._signal(record, number, all=number == KILL and record.status == "paused")
        if number == KILL and record.status == "paused":
            self._thaw(record)
        self._tell("task.signalled", record, signal=number)

    def _signal(self, record: ContainerRecord, number: int, *, all: bool = False) -> None:
        """Sends it; a container that ended meanwhile is not an error: that it ends is what was wished."""
        try:
            self._state.isolation(record).kill(record.id, number, all=all)
        except (NotFound, FailedPrecondition):
            if record.live and not record.gate.wait(1.0):
                raise

    def _thaw(self, record: ContainerRecord) -> None:
        try:
            self._state.isolation(record).resume(record.id)
        except (NotFound, FailedPrecondition):
            if record.live and not record.gate.wait(1.0):
                raise

    def pause(self, name: str) -> None:
        self._turn(name, "running", "paused")

    def resume(self, name: str) -> None:
        self._turn(name, "paused", "running")

    def _turn(self, name: str, before: str, after: str) -> None:
        state = self._state
        record = self._running(name)
        with record.lock:
            if record.status != before:
                raise FailedPrecondition(f'container "{record.name}"', f"is not {before}: it is {record.status}")
            isolation = state.isolation(record)
            turn, back = isolation.pause, isolation.resume
            if after == "running":
                turn, back = back, turn
            turn(record.id)
            try:
                with state.database.transaction() as tx:
                    tx.execute("UPDATE containers SET data = ? WHERE id = ?", (record.pack(status=after), record.id))
                    tx.event("task.paused" if after == "paused" else "task.resumed", record.id, attributes(record))
            except BaseException:
                failures: list[tuple[str, Exception]] = []
                attempt(failures, "isolation." + back.__name__, partial(back, record.id))
                state.report(failures, f"undo of {turn.__name__} of container {record.id[:12]}")
                raise
            record.apply({"status": after})

    def _tell(self, topic: str, record: ContainerRecord, **more: object) -> None:
        self._state.database.publish(Event(topic, record.id, time.time_ns(), attributes(record, **more)))

    def _running(self, name: str) -> ContainerRecord:
        record = self._state.registry.find(name)
        if not record.live:
            raise FailedPrecondition(f'container "{record.name}"', f"is not running: it is {record.status}")
        return record

    # the end

    def remove(self, name: str, *, force: bool, volumes: bool = False) -> None:
        record = self._state.registry.find(name)
        gate = record.gate
        if record.live:
            self._must_be_forced(record, force)
            self._kill_hard(record, gate)
        with record.lock:
            if self._state.registry.get(record.id) is not record:
                return  # it removed itself, or another call was first
            if record.live:  # its end was not seen, or it was started while this waited for the lock
                self._must_be_forced(record, force)
                self._ending.ended(record, Exit(None, time.time_ns()))
                if self._state.registry.get(record.id) is not record:
                    return
            if not self._ending.remove(record, volumes=volumes):
                raise FailedPrecondition(f'container "{record.name}"', record.error, "see the engine's log; try again")

    @staticmethod
    def _must_be_forced(record: ContainerRecord, force: bool) -> None:
        if not force:
            raise InUse(f'container "{record.name}"', f"is {record.status}", "stop it first, or force its removal")

    def _kill_hard(self, record: ContainerRecord, gate: ExitEvent) -> None:
        self._signal(record, KILL, all=True)
        if record.status == "paused":
            self._thaw(record)
        gate.wait(KILL_SECONDS)

    def wait(self, name: str, exec_id: str, timeout: float | None) -> Exit | None:
        record = self._state.registry.find_or_grave(name)
        gate = record.gate
        if exec_id:
            exec = record.execs.get(exec_id)
            if exec is None:
                raise NotFound(f'exec "{exec_id}"', f'no such exec in container "{record.name}"')
            gate = exec.gate
        elif not record.live and record.status == "stopped" and not gate.is_set():
            return Exit(record.exit_code, record.finished, record.oom_killed)
        return gate.exit if gate.wait(timeout) else None
