"""exec: one more process in a running container."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import attrs

from wherry.api import Error, Event, ExecRequest, FailedPrecondition, NotFound, Stdio
from wherry.engine.containers.names import new_id
from wherry.engine.containers.records import ContainerRecord, Exec, ExitEvent
from wherry.engine.containers.specs import exec_process
from wherry.engine.containers.specs.profile import DEFAULT_CAPABILITIES
from wherry.engine.state.state import State, attributes
from wherry.engine.state.undo import Undo
from wherry.kernel.log import logger as log

#: So many ended execs of a container are remembered for whoever still asks how they ended.
KEPT = 256
#: So long an end that the shim has seen may take to be told here, in seconds.
ENDED = 5.0


class Execs:
    def __init__(self, state: State) -> None:
        self._state = state

    def exec(self, name: str, request: ExecRequest, stdio: Stdio) -> str:
        """Starts it; its id. FailedPrecondition when the container does not run."""
        state = self._state
        record = state.registry.find(name)
        if record.status != "running" or record.removing:
            hint = "resume it first" if record.status == "paused" else "start it first"
            raise FailedPrecondition(f'container "{record.name}"', f"is not running: it is {record.status}", hint)
        process = exec_process(self._base(record), request, user=record.user, default_capabilities=DEFAULT_CAPABILITIES)
        exec = Exec(new_id(), ExitEvent())
        isolation = state.isolation(record)
        at_once = "exec-start" in state.kernel.capabilities("isolation", record.drivers["isolation"]).provides
        undo = Undo()
        self._prune(record)
        # Before the process is there: its end may be told before the driver answers.
        record.execs[exec.id] = exec
        told = attributes(record, exec_id=exec.id, command=" ".join(request.command)[:1000])
        exec.untold.append(Event("exec.started", record.id, time.time_ns(), told))
        undo.add("exec", lambda: record.execs.pop(exec.id, None))
        undo.add("event", exec.untold.clear)
        undo.add("shim", lambda: state.forget(record.id, exec.id))
        undo.add("isolation", lambda: isolation.delete(record.id, exec.id, force=True))
        streams = attrs.evolve(
            stdio, terminal=request.tty, hold_stdin=stdio.hold_stdin or (request.interactive and request.detach)
        )

        def start() -> None:
            if at_once:
                exec.pid = isolation.exec(record.id, exec.id, process, streams, start=True).pid
                return
            exec.pid = isolation.exec(record.id, exec.id, process, streams).pid
            try:
                isolation.start(record.id, exec.id)
            except (FailedPrecondition, NotFound) as error:
                # It has ended already, with its container perhaps: then its exit says how, and nobody knows it any more.
                if type(error) not in (FailedPrecondition, NotFound) or not exec.gate.wait(ENDED):
                    raise

        try:
            state.kernel.together(start)
        except BaseException:
            state.report(undo.run(), f"undo of exec in container {record.id[:12]}")
            raise
        try:
            state.finishers.submit(self._tell, exec)  # who waits for the start does not wait for the event
        except RuntimeError:  # the engine is closing; else one of the threads that there are will tell
            if state.closing.is_set():
                self._tell(exec)
        return exec.id

    def _tell(self, exec: Exec) -> None:
        try:
            exec.tell(self._state.database.publish)
        except Error as error:
            log.error("start of exec {}: {}", exec.id[:12], error)

    def _base(self, record: ContainerRecord) -> Mapping[str, Any]:
        if record.process is None:
            record.process = self._state.spec_of(record)[0].get("process") or {}
        return record.process

    @staticmethod
    def _prune(record: ContainerRecord) -> None:
        if len(record.execs) >= KEPT:
            for id in [exec.id for exec in list(record.execs.values()) if exec.gate.is_set()][: KEPT // 2]:
                record.execs.pop(id, None)

    def find(self, record: ContainerRecord, exec_id: str) -> Exec:
        """NotFound when the container has no such exec."""
        if (exec := record.execs.get(exec_id)) is None:
            raise NotFound(f'exec "{exec_id}"', f'no such exec in container "{record.name}"')
        return exec
