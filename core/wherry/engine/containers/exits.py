"""What follows when a process has ended: its exit is made durable, what it used is given back, and waiters are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs

from wherry.api import Error, Event, Exit
from wherry.engine.containers import bundles
from wherry.engine.containers.records import ContainerRecord, Exec, ExitEvent
from wherry.engine.containers.sandboxes import note_gone, take_down
from wherry.engine.networks.endpoints import SandboxEndpoint
from wherry.engine.shim.acks import Acks
from wherry.engine.state.database import Transaction
from wherry.engine.state.state import State, attributes
from wherry.engine.state.undo import attempt
from wherry.kernel.log import logger as log

_RETRY_SECONDS = 0.2
_KILLED = 128 + 9


@attrs.define
class _Exited:
    """One end of a container's run. leaving: the places of the sandbox that ends with it, None when that stays.
    written: whether it is durable. told: whether its events are. tell: opens the gates of who waits."""

    record: ContainerRecord
    exit: Exit
    leaving: tuple[SandboxEndpoint, ...] | None
    tell: Callable[[], None]
    written: bool = True
    told: bool = False


class ExitHandler:
    """Follows the shim's events on a thread of its own and works on each end on one of the finishers'."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._acks = Acks(self._ack)
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Starts to listen: whatever the shim has not been told to be durable comes again first."""
        self._thread = threading.Thread(target=self._listen, name="wherry-exits", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        state = self._state
        after = 0
        while not state.closing.is_set():
            try:
                for event in state.shim.events(after):
                    if state.closing.is_set():
                        return
                    if event.sequence:
                        after = event.sequence
                        self._dispatch(event)
            except (Error, OSError) as error:
                if not state.closing.is_set():
                    log.warning("the shim's events broke off: {}", error)
            # A new shim numbers its events from one again and gives out what no ack covers.
            after = 0
            self._acks = Acks(self._ack)
            state.closing.wait(_RETRY_SECONDS)

    def _dispatch(self, event: Event) -> None:
        acks = self._acks
        acks.begin(event.sequence)
        done = partial(acks.done, event.sequence)
        details = event.attributes
        of_driver = "." in event.id and details.get("exec_id")  # and forgotten by it
        if event.topic != "task.exited" or of_driver:
            done()
            return
        code = details.get("code", "")
        exit = Exit(
            int(code) if code not in ("", "None", None) else None, event.time, details.get("oom_killed") == "true"
        )
        record = self._state.registry.get(event.id)
        exec_id = details.get("exec_id", "")
        if record is None:
            self._state.forget(event.id, exec_id)
            done()
        elif exec_id:
            self._exec_exited(record, exec_id, exit, done)
        else:
            self._submit(self._exited, record, exit, int(details.get("pid") or 0), done)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        def guarded() -> None:
            try:
                work(*arguments)
            except Exception:
                log.exception("{} failed", work.__name__)

        try:
            self._state.finishers.submit(guarded)
        except RuntimeError as error:
            # The engine is closing, and the shim replays the event to the next one; or one more thread can't be started, and one of
            # those that there are does the work.
            log.debug("{} waits: {}", work.__name__, error)

    def _ack(self, sequence: int) -> None:
        try:
            self._state.shim.ack_soon(sequence)
        except Error as error:
            log.debug("shim.ack {}: {}", sequence, error)

    # containers

    def _exited(self, record: ContainerRecord, exit: Exit, pid: int, done: Callable[[], None]) -> None:
        with record.lock:
            # A start that failed has been undone by its own thread, and a late echo of it is not this run's end.
            if record.live and (not pid or not record.pid or pid == record.pid):
                self.ended(record, self._with_oom(record, exit), done)
                return
        done()
        if not record.live:
            self._state.forget(record.id)

    def _with_oom(self, record: ContainerRecord, exit: Exit) -> Exit:
        """Whether it was the kernel that killed it, for want of memory: its cgroup knows."""
        if exit.code != _KILLED or exit.oom_killed:
            return exit
        try:
            known = self._state.isolation(record).state(record.id).exit
        except (Error, OSError):
            return exit
        return attrs.evolve(exit, oom_killed=known is not None and known.oom_killed)

    def ended(self, record: ContainerRecord, exit: Exit, done: Callable[[], None] = lambda: None) -> None:
        """Records the end of a live container and takes down what it ran in. The caller holds its lock.

        Who waits is told whatever happens: where a driver hangs doctor finds what is left, and an end that can't be written down is
        written later.
        """
        state = self._state
        tell = partial(self._tell, exit, record.gate, list(record.execs.values()))
        last = state.memberships.leave(record)
        end = _Exited(record, exit, state.attached.get(record.sandbox_id, ()) if last else None, tell)
        try:
            with state.traced(record.id, record.traced):
                try:
                    state.kernel.together(self._finish, end)
                except (Error, OSError) as error:
                    log.error("end of container {}: {}", record.id[:12], error)
                    record.removing = False
                    record.apply({**self._stopped(exit), "error": f"clean-up failed: {error}"})
                    end.written = False
        finally:
            if last:
                state.memberships.down(record)
        if end.written or self._write_late(end):
            tell()
            # Durable by now, and nobody who waits needs to wait for the shim's bookkeeping.
            self._settled(record, done)
        else:
            tell()
            threading.Thread(target=self._owe, args=(end, done), name="wherry-owed", daemon=True).start()

    def _finish(self, end: _Exited) -> None:
        if end.record.remove and self.remove(end.record, end):
            end.tell()  # it is gone, and nobody who waits needs to wait for the way back to who waits for this
        else:
            self._stop(end)

    def _settled(self, record: ContainerRecord, done: Callable[[], None]) -> None:
        done()
        self._state.forget(record.id)

    @staticmethod
    def _tell(exit: Exit, gate: ExitEvent, execs: Sequence[Exec]) -> None:
        for exec in execs:
            if not exec.gate.is_set():
                exec.gate.open(Exit(None, exit.time))
        gate.open(exit)

    def _stop(self, end: _Exited) -> None:
        state, record = self._state, end.record
        changes = self._stopped(end.exit)
        try:
            self._write(end, record.pack(**changes))
        except Error as error:  # what it ran in goes all the same
            log.error("end of container {}: {}", record.id[:12], error)
            end.written = False
        failures: list[tuple[str, Exception]] = []
        for step in self.release(end, failures):
            attempt(failures, "shim.remove_sandbox", step)
        state.report(failures, f"end of container {record.id[:12]}")
        record.apply(changes)

    def _write(self, end: _Exited, data: str) -> None:
        """Makes the exit durable, once."""
        with self._state.database.transaction() as tx:
            tx.execute("UPDATE containers SET data = ? WHERE id = ?", (data, end.record.id))
            if end.told:
                return
            self._leave_sandbox(tx, end)
            self._exit_event(tx, end)
        end.told = True

    def _write_late(self, end: _Exited) -> bool:
        """The end of a container that memory holds as ended already, or as started again; False while it can't be written."""
        record = end.record
        if self._state.registry.get(record.id) is not record:
            return True
        if record.sandbox_id in self._state.attached:  # started again meanwhile, in the same one
            end.leaving = None
        try:
            self._write(end, record.pack())
        except Error as error:
            log.error("end of container {}: {}", record.id[:12], error)
            return False
        return True

    def _owe(self, end: _Exited, done: Callable[[], None]) -> None:
        """Tries until it is written, or the engine ends: the shim tells the next one again what was not acknowledged."""
        record = end.record
        while not self._state.closing.wait(_RETRY_SECONDS):
            with record.lock:
                if not self._write_late(end):
                    continue
                if record.remove and record.status == "stopped" and self._state.registry.get(record.id) is record:
                    try:
                        self.remove(record)
                    except Error as error:
                        log.error("removal of container {}: {}", record.id[:12], error)
                        continue
            if record.live:
                done()  # started again meanwhile: what the shim has under its id is the new run's
            else:
                self._settled(record, done)
            return

    @staticmethod
    def _stopped(exit: Exit) -> dict[str, Any]:
        return {
            "status": "stopped",
            "pid": 0,
            "start_time": 0,
            "finished": exit.time or time.time_ns(),
            "exit_code": exit.code,
            "oom_killed": exit.oom_killed,
            "addresses": (),
        }

    @staticmethod
    def _leave_sandbox(tx: Transaction, end: _Exited) -> None:
        if end.leaving is not None:
            note_gone(tx, end.record, end.leaving)

    @staticmethod
    def _exit_event(tx: Transaction, end: _Exited) -> None:
        record, exit = end.record, end.exit
        code = "unknown" if exit.code is None else exit.code
        oom = "true" if exit.oom_killed else ""
        tx.event("task.exited", record.id, attributes(record, code=code, oom_killed=oom), exit.time)

    def release(self, end: _Exited, failures: list[tuple[str, Exception]]) -> list[Callable[[], None]]:
        """Takes down what a start made: process, bundle, and with the last member network and sandbox. Idempotent; what failed is
        added to failures. What comes back is still to be waited for."""
        state, record = self._state, end.record
        pending: list[Callable[[], None]] = []
        isolation = state.isolation(record)
        attempt(failures, "isolation.delete", partial(isolation.delete, record.id, force=True))
        if record.volumes:
            attempt(failures, "volume.unmount", lambda: state.volumes.unmount(record))
        if end.leaving is not None and record.sandbox_id in state.attached:
            take_down(state, record, end.leaving, failures, pending)
        # Else its hosts files are mounted in those that joined it.
        if end.leaving is not None or record.sandbox_id != record.id:
            bundles.remove(str(state.bundle(record)))
        return pending

    def remove(self, record: ContainerRecord, end: _Exited | None = None, *, volumes: bool = False) -> bool:
        """Takes a container away for good, with the run that ends; volumes: also its volumes without a name, which go with one
        that removes itself anyway. The caller holds the lock. False when the snapshot would not go: then the container is kept, and
        a later try finds it."""
        state = self._state
        what = f"removal of container {record.id[:12]}"
        record.removing = True
        failures: list[tuple[str, Exception]] = []
        pending = self.release(end, failures) if end is not None else []
        vital: list[tuple[str, Exception]] = []
        attempt(vital, "snapshotter.remove", lambda: state.snapshotter(record).remove(record.id))
        if record.log != "none":
            attempt(failures, "log.remove", lambda: state.kernel.log(record.log).remove(record.id))
        if record.volumes and not vital and (volumes or record.remove):
            attempt(failures, "volume.remove", lambda: state.volumes.drop_anonymous(record))
        for step in pending:
            attempt(failures, "shim.remove_sandbox", step)
        state.report(failures + vital, what)
        if vital:
            record.removing = False
            record.apply({"error": f"removal failed: {vital[0][1]}"})
            return False
        with state.database.transaction(durable=not record.remove) as tx:
            tx.execute("DELETE FROM containers WHERE id = ?", (record.id,))
            if end is not None:
                self._leave_sandbox(tx, end)
                self._exit_event(tx, end)
            tx.event("container.removed", record.id, attributes(record))
        if end is not None:
            record.apply(self._stopped(end.exit))
        state.registry.drop(record)
        if record.traced:
            state.drop_spans(record.id)
        if end is None and not record.gate.is_set():
            record.gate.open(Exit(record.exit_code, record.finished))
        return True

    # execs

    def _exec_exited(self, record: ContainerRecord, exec_id: str, exit: Exit, done: Callable[[], None]) -> None:
        exec = record.execs.get(exec_id)
        if exec is None:
            self._state.forget(record.id, exec_id)
            done()
            return
        exec.gate.open(exit)  # what follows changes nothing for who waits
        self._submit(self._finish_exec, record, exec, exit, done)

    def _finish_exec(self, record: ContainerRecord, exec: Exec, exit: Exit, done: Callable[[], None]) -> None:
        state = self._state
        code = "unknown" if exit.code is None else exit.code
        told = attributes(record, exec_id=exec.id, code=code)
        failures: list[tuple[str, Exception]] = []
        # An event that can't be written is lost, as after a crash; held back, the ack would hold back those of all later ends.
        event = Event("exec.exited", record.id, exit.time, told)
        attempt(failures, "database.publish", lambda: exec.tell(state.database.publish))
        attempt(failures, "database.publish", lambda: state.database.publish(event))
        done()
        if record.live:
            attempt(
                failures, "isolation.delete", lambda: state.isolation(record).delete(record.id, exec.id, force=True)
            )
        state.forget(record.id, exec.id)
        state.report(failures, f"end of exec {exec.id[:12]}")
