"""What a new engine does about the one before it: finds what still runs, learns how the rest ended, undoes what was half done.

Everything is asked of those who know: the database (what was acknowledged), the shim (what runs), the drivers (what they still
hold). It converges: broken off at any point, it may simply run again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from wherry.api import Error, Exit, TaskState
from wherry.engine.containers.exits import ExitHandler
from wherry.engine.containers.records import ContainerRecord, Exec, ExitEvent, unpack_record
from wherry.engine.networks.endpoints import SandboxEndpoint, published, settle_endpoints, unpack_endpoints
from wherry.engine.state.database import boot_id
from wherry.engine.state.state import State
from wherry.engine.state.undo import attempt
from wherry.kernel.log import logger as log
from wherry.linux import cgroup

Tasks = dict[tuple[str, str], TaskState]


class Recovery:
    def __init__(self, state: State, ending: ExitHandler) -> None:
        self._state = state
        self._ending = ending

    def load(self) -> None:
        """Reads the records. Rows of another boot have nothing running: their mounts and namespaces are gone with it."""
        state = self._state
        for (text,) in state.database.all("SELECT data FROM containers"):
            state.registry.reserve(record := unpack_record(text))
            if record.live:
                state.memberships.enter(record)
        for id, attached in state.database.all("SELECT id, attached FROM sandboxes"):
            state.attached[id] = unpack_endpoints(attached)
        state.leases.expire_dead()
        state.database.prune_events()

    def run(self) -> None:
        """Before the engine serves anybody."""
        state = self._state
        boot = boot_id()
        if state.database.get("boot") != boot:
            shutil.rmtree(state.bundles, ignore_errors=True)
            state.bundles.mkdir(mode=0o700, parents=True, exist_ok=True)
            state.database.set("boot", boot)
        tasks: Tasks = {(task.id, task.exec_id): task for task in state.shim.list()}
        # Those that containers are attached by, and those by which one may have been about to be.
        networks = {place.driver for places in state.attached.values() for place in places}
        networks.update(record.drivers["network"] for record in state.registry if "network" in record.drivers)
        # A start that was cut short between its reservations may hold one of a driver that no row names.
        with suppress(FileNotFoundError), os.scandir(state.run / "network") as used:
            networks.update(entry.name for entry in used)
        tasks.update(self._adopt())
        for record in list(state.registry):
            try:
                self._settle(record, tasks)
            except (Error, OSError) as error:
                log.error("container {}: not recovered: {}", record.id[:12], error)
        self.sweep(networks, ended=True)
        self._ending.follow()

    def _adopt(self) -> Tasks:
        """Has each isolation driver in use find again what it made. It knows more of it than the shim: whether it is paused."""
        state = self._state
        found: Tasks = {}
        for id in sorted({record.drivers.get("isolation", "") for record in state.registry} - {""}):
            try:
                for task in state.kernel.driver("isolation", id).adopt():
                    found[task.id, task.exec_id] = task
            except (Error, OSError) as error:
                log.error("isolation driver {}: adopt failed: {}", id, error)
        return found

    def _settle(self, record: ContainerRecord, tasks: Tasks) -> None:
        task = tasks.get((record.id, ""))
        with record.lock:
            if record.status == "creating":
                self._undo_create(record)
            elif record.live:
                self._settle_live(record, task)
            elif record.remove and record.status == "stopped":
                self._ending.remove(record)
        if record.live:
            for (id, exec_id), state in tasks.items():
                if id == record.id and exec_id:
                    self._settle_exec(record, state)

    def _settle_live(self, record: ContainerRecord, task: TaskState | None) -> None:
        self._settle_places(record)
        if task is None or (record.start_time and task.start_time and task.start_time != record.start_time):
            log.warning("container {}: its end was not seen", record.id[:12])
            self._ending.ended(record, Exit(None, time.time_ns()))
        elif task.status == "stopped":
            # Its event may be covered by no ack and come again: by then this record is not live and it is passed over.
            self._ending.ended(record, task.exit or Exit(None, time.time_ns()))
        else:
            if task.pid and task.pid != record.pid:
                record.apply({"pid": task.pid})
            status: str = task.status
            if record.status == "paused":
                status = self._state.isolation(record).state(record.id).status
            if status in ("running", "paused") and status != record.status:
                record.apply({"status": status})  # the engine ended between the deed and its row

    def _settle_places(self, record: ContainerRecord) -> None:
        """A connect that was broken off is taken back, as nobody was told of it; a disconnect is done to its end."""
        places = self._state.attached.get(record.id, ())
        pending = [place for place in places if place.pending]
        failures: list[tuple[str, Exception]] = []
        for place in pending:
            attempt(failures, "network.detach", partial(self._detach, record.id, place))
        if pending and not failures:
            staying = tuple(place for place in places if not place.pending)
            ports = [
                published(self._state.network(place.driver, record), record.id, place.network) for place in staying
            ]
            settle_endpoints(self._state, record, staying, tuple(port for group in ports for port in group))
        self._state.report(failures, f"recovery of container {record.id[:12]}")

    @staticmethod
    def _settle_exec(record: ContainerRecord, task: TaskState) -> None:
        exec = Exec(task.exec_id, ExitEvent(), task.pid)
        if task.status == "stopped":
            exec.gate.open(task.exit or Exit(None, time.time_ns()))
        record.execs[exec.id] = exec

    def _undo_create(self, record: ContainerRecord) -> None:
        """A create or run that nobody was told of: it leaves nothing, under whatever drivers it was begun."""
        state = self._state
        failures: list[tuple[str, Exception]] = []
        id = record.id
        attempt(failures, "isolation.delete", lambda: state.isolation(record).delete(id, force=True))
        state.forget(id)
        if network := record.drivers.get("network", ""):
            for place in state.attached.pop(id, ()) or (SandboxEndpoint(network, network),):
                attempt(failures, "network.detach", partial(self._detach, id, place))
        attempt(failures, "shim.remove_sandbox", lambda: state.shim.remove_sandbox(id))
        shutil.rmtree(state.bundles / id, ignore_errors=True)
        if not attempt(failures, "snapshotter.remove", lambda: state.snapshotter(record).remove(id)):
            state.report(failures, f"recovery of container {id[:12]}")
            return  # the row stays, so that the next engine or doctor tries again
        if record.log != "none":
            attempt(failures, "log.remove", lambda: state.kernel.log(record.log).remove(id))
        attempt(failures, "volume.remove", lambda: state.volumes.drop_anonymous(record))
        with state.database.transaction(durable=False) as tx:
            tx.execute("DELETE FROM containers WHERE id = ?", (id,))
            tx.execute("DELETE FROM sandboxes WHERE id = ?", (id,))
        state.registry.drop(record, remember=False)
        state.report(failures, f"recovery of container {id[:12]}")

    def _detach(self, id: str, place: SandboxEndpoint) -> None:
        self._state.network(place.driver).detach(id, place.network)

    # what nobody owns

    def orphans(self, *, ended: bool = False) -> tuple[list[TaskState], list[str], list[Path]]:
        """(tasks, sandboxes, bundles) that belong to no live container, nor to a driver (see wherry.api.Shim).

        ended: also tasks that have, whose event is told but not yet worked off.
        """
        state = self._state
        # What is there is listed before it is asked whose it is: a start makes its container busy first.
        known = [task for task in state.shim.list() if "." not in task.id]
        boxes = [sandbox.id for sandbox in state.shim.sandboxes() if "." not in sandbox.id]
        paths = list(state.bundles.iterdir()) if state.bundles.exists() else []
        live = self._live()
        tasks = [task for task in known if (ended or task.status != "stopped") and not self._owned(task.id)]
        sandboxes = [id for id in boxes if id not in live]
        bundles = [path for path in paths if path.name not in live and not self._owned(path.name)]
        return tasks, sandboxes, bundles

    def cgroups(self) -> list[str]:
        """Directories of containers that do not run, in every hierarchy."""
        layout, parent = cgroup.detect(), self._state.cgroup
        found = []
        for mount in sorted({*layout.v1.values(), layout.v2} - {""}):
            with suppress(FileNotFoundError), os.scandir(mount + parent) as entries:
                found += [entry.path for entry in entries if entry.is_dir() and not self._owned(entry.name)]
        return found

    def _owned(self, id: str) -> bool:
        record = self._state.registry.get(id)
        return record is not None and busy(record)

    def _live(self) -> set[str]:
        """The sandboxes of busy containers."""
        return {record.sandbox_id for record in self._state.registry if busy(record)}

    def sweep(self, networks: Iterable[str] | None = None, *, ended: bool = False) -> list[str]:
        """Takes down the orphans (see there) and what networks (driver ids; None is all) hold for nobody; what was done. Starts
        wait meanwhile."""
        with self._state.sweeping.block():
            return self._sweep(networks, ended)

    def _sweep(self, networks: Iterable[str] | None, ended: bool) -> list[str]:
        state = self._state
        failures: list[tuple[str, Exception]] = []
        done = []
        tasks, sandboxes, bundles = self.orphans(ended=ended)
        for task in sorted(tasks, key=lambda task: not task.exec_id):
            self._kill(task, failures)
            done.append(
                f"process of container {task.id[:12]}" + (f", exec {task.exec_id[:12]}" if task.exec_id else "")
            )
        for id in sandboxes:
            if attempt(failures, "shim.remove_sandbox", partial(state.shim.remove_sandbox, id)):
                done.append(f"sandbox {id[:12]}")
        live = self._live()
        stale = [id for id in state.attached if id not in live]
        if stale:
            with state.database.transaction(durable=False) as tx:
                for id in stale:
                    tx.execute("DELETE FROM sandboxes WHERE id = ?", (id,))
            for id in stale:
                state.attached.pop(id, None)
        done += self._sweep_networks(networks, live, failures)
        for group in self.cgroups():
            if attempt(failures, "cgroup.remove", partial(cgroup.remove, group)):
                done.append(f"cgroup {group}")
        for path in bundles:
            shutil.rmtree(path, ignore_errors=True)
            done.append(f"bundle {path.name[:12]}")
        state.report(failures, "sweep")
        return done

    def _sweep_networks(
        self, networks: Iterable[str] | None, live: set[str], failures: list[tuple[str, Exception]]
    ) -> list[str]:
        state = self._state
        if networks is None:
            networks = state.kernel.usable("network", used=True)
        done = []
        for id in networks:
            try:
                dropped = state.network(id).gc(live)
            except (Error, OSError) as error:
                failures.append((f"network.{id}.gc", error))
                continue
            if dropped:
                done.append(f"{dropped} attachments of network driver {id}")
        return done

    def retire(self) -> None:
        """At the engine's end: network drivers that were in use take down what no container needs, bridges for instance."""
        state = self._state
        failures: list[tuple[str, Exception]] = []
        used = state.kernel.at_work("network")
        self._sweep_networks(used, {record.sandbox_id for record in state.registry if busy(record)}, failures)
        state.report(failures, "end of the engine")

    def _kill(self, task: TaskState, failures: list[tuple[str, Exception]]) -> None:
        """Nobody knows any more which driver made it: each of those that run here is told to delete it."""
        state = self._state
        for id in state.kernel.usable("isolation"):
            delete = state.kernel.driver("isolation", id).delete
            attempt(failures, f"{id}.delete", partial(delete, task.id, task.exec_id, force=True))
        state.forget(task.id, task.exec_id)


def busy(record: ContainerRecord) -> bool:
    """True while a container runs, or another thread is at work on it."""
    if record.live or record.status == "creating":
        return True
    if record.lock.acquire(blocking=False):
        record.lock.release()
        return False
    return True
