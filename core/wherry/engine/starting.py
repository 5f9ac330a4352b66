"""start: namespaces, network and process of a container, or none of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import attrs

from wherry.api import (
    Attachment,
    AttachRequest,
    CreateRequest,
    Error,
    FailedPrecondition,
    LogSink,
    Network,
    Reservation,
    Stdio,
    TaskState,
)
from wherry.engine import bundles, hostfiles
from wherry.engine.creation import Begun, Created, Creation, must_not_be_removing
from wherry.engine.memberships import note_gone, take_down
from wherry.engine.records import Gate, Record
from wherry.engine.specs import Written
from wherry.engine.state import State, attributes
from wherry.engine.undo import Undo, attempt


@attrs.define
class Net:
    """A start's place in the network: what was reserved, and how it went on. kind: "own", "host" or "shared"."""

    kind: str = "own"
    hostname: str = ""
    reservation: Reservation | None = None
    attachment: Attachment | None = None
    name: str = ""
    driver_id: str = ""
    driver: Network | None = None
    made: Callable[[], object] = lambda: None
    """Waits until the sandbox is there."""


class Starting:
    def __init__(self, state: State, creation: Creation) -> None:
        self._state = state
        self._creation = creation

    def start(self, created: Created, net: Net, stdio: Stdio, *, undo: Undo) -> None:
        """Starts a container that is not running, in what ``reserve`` gave; the caller holds its lock and, on any error, runs
        undo."""
        state, record = self._state, created.record
        written = self._creation.build(created, hostname=net.hostname, network=net.kind)
        bundle = state.bundle(record)
        self._bundle(created, net, str(bundle), written.text, undo)
        isolation = created.drivers.isolation
        net.made()
        undo.add("isolation", lambda: self._drop(created))
        task = isolation.create(
            CreateRequest(
                id=record.id,
                sandbox_id=record.sandbox_id,
                bundle=bundle,
                spec=written.spec,
                rootfs=created.mounts,
                stdio=self._stdio(created, stdio),
            )
        )
        self._attach(created, net)
        isolation.start(record.id)
        self._commit(created, net, task, written)
        record.process = written.spec.get("process")

    # network and sandbox

    def reserve(self, created: Begun, *, undo: Undo) -> Net:
        """Its place in the network, and the sandbox, which the shim makes meanwhile. On any error the caller runs undo."""
        must_not_be_removing(created.record)
        state, record, request = self._state, created.record, created.request
        state.sweeping.wait()
        state.memberships.enter(record)
        if record.sandbox_id != record.id:
            undo.add("sandbox", lambda: self._leave(record, ()))
            members = state.registry.members(record.sandbox_id)
            # One that runs now leaves the sandbox after this container has entered it, so the sandbox stays.
            if not request.sandbox_id and not any(other is not record and other.live for other in members):
                raise FailedPrecondition(
                    f'network "{request.network}"', "that container is not running", "start it first"
                )
            return Net(kind="shared", hostname=self._creation.hostname(created, False))
        pairs: list[tuple[str, str]] = []
        undo.add("sandbox", lambda: self._leave(record, pairs))
        name, driver_id, driver = state.find_network(request.network, created.drivers)
        names = tuple(dict.fromkeys((record.name, *request.aliases)))
        wish = AttachRequest(
            sandbox_id=record.id,
            network=name,
            names=names,
            addresses=request.addresses,
            mac=request.mac,
            ports=request.ports,
        )
        pairs.append((name, driver_id))
        reservation = driver.reserve(wish)
        host = reservation.netns == "host"
        net = Net(
            kind="host" if host else "own",
            hostname=self._creation.hostname(created, host),
            reservation=reservation,
            name=name,
            driver_id=driver_id,
            driver=driver,
        )
        net.made = state.shim.create_sandbox_soon(state.sandbox(record, reservation.netns, net.hostname))
        return net

    def _leave(self, record: Record, pairs: Sequence[tuple[str, str]]) -> None:
        """The undo of a place in a sandbox: the last one takes it down. pairs: what this start has reserved in."""
        state = self._state
        if not state.memberships.leave(record):
            return
        failures: list[tuple[str, Exception]] = []
        try:
            attached = state.attached.get(record.sandbox_id, ())
            pending: list[Callable[[], None]] = []
            if pairs or attached:
                take_down(state, record, tuple(dict.fromkeys((*attached, *pairs))), failures, pending)
            for step in pending:
                attempt(failures, "shim.remove_sandbox", step)
            if attached:
                with state.database.transaction(durable=False) as tx:
                    note_gone(tx, record, attached)
        finally:
            state.memberships.down(record)
        state.report(failures, f"undo of start of container {record.id[:12]}")

    def _attach(self, created: Created, net: Net) -> None:
        if net.reservation is None or net.driver is None:
            return
        sandbox = self._state.sandbox(created.record, net.reservation.netns, net.hostname)
        net.attachment = net.driver.attach(net.reservation, sandbox)
        if net.attachment.addresses or net.attachment.nameservers:
            self._files(created, net, str(self._state.bundle(created.record)))

    # the bundle

    def _bundle(self, created: Created, net: Net, bundle: str, spec: str, undo: Undo) -> None:
        undo.add("bundle", partial(bundles.remove, bundle))
        bundles.make(bundle)
        bundles.write(bundle, {"config.json": spec.encode("ascii")})
        if net.kind != "shared":
            self._files(created, net, bundle)

    def _files(self, created: Created, net: Net, bundle: str) -> None:
        attachment = net.attachment
        made = hostfiles.make(
            created.request,
            hostname=net.hostname,
            host=net.kind == "host",
            addresses=attachment.addresses if attachment else (),
            names=(created.record.name, *created.request.aliases),
            nameservers=attachment.nameservers if attachment else (),
        )
        bundles.write(bundle, made.files())

    def _stdio(self, created: Created, stdio: Stdio) -> Stdio:
        record, request = created.record, created.request
        sink = LogSink("none")
        if record.log != "none":
            sink = self._state.kernel.log(record.log).sink(record.id, request.log_options)
        return attrs.evolve(
            stdio,
            terminal=request.tty,
            log=sink,
            hold_stdin=stdio.hold_stdin or (request.interactive and request.detach),
        )

    # the end of a start

    def _commit(self, created: Created, net: Net, task: TaskState, written: Written) -> None:
        state, record = self._state, created.record
        fresh = record.status == "creating"
        attached = ((net.name, net.driver_id),) if net.reservation is not None else ()
        changes: dict[str, Any] = {
            "status": "running",
            "pid": task.pid,
            "start_time": task.start_time,
            "started": time.time_ns(),
            "finished": 0,
            "exit_code": None,
            "oom_killed": False,
            "error": "",
            "networks": tuple(name for name, _driver in attached),
            "addresses": net.attachment.addresses if net.attachment else (),
            "ports": net.reservation.ports or record.ports if net.reservation else record.ports,
            "generation": record.generation + 1,
        }
        # A container that removes itself would not outlive the machine, so neither need its row: no sync for it.
        with state.database.transaction(durable=not record.remove) as tx:
            tx.execute(
                "UPDATE containers SET data = ?, spec = ?, owners = ? WHERE id = ?",
                (record.pack(**changes), written.text, written.owners_text, record.id),
            )
            if fresh:
                if not record.remove:  # one that removes itself is never started again
                    tx.execute("UPDATE containers SET image = ? WHERE id = ?", (json.dumps(created.image), record.id))
                state.leases.erase(tx, record.id)
                tx.event("container.created", record.id, attributes(record))
            if net.reservation is not None:
                tx.execute(
                    "INSERT OR REPLACE INTO sandboxes VALUES (?, ?, ?, ?)",
                    (record.id, net.reservation.netns, changes["started"], json.dumps(attached)),
                )
            for name, driver in attached:
                tx.event("network.attached", record.id, {"network": name, "driver": driver})
            tx.event("task.started", record.id, attributes(record, pid=task.pid))
        if record.gate.is_set():
            record.gate = Gate()
        record.apply(changes)
        if net.reservation is not None:
            state.attached[record.id] = attached

    def _drop(self, created: Created) -> None:
        """The undo of isolation.create: its process ends up unknown to driver and shim alike."""
        created.drivers.isolation.delete(created.record.id, force=True)
        self._state.forget(created.record.id)

    def failed(self, created: Created, error: BaseException) -> None:
        """Notes on a container that stays why its start failed, as docker does."""
        state, record = self._state, created.record
        code = error.exit_code if isinstance(error, Error) else 125
        changes = {
            "status": "stopped" if record.started else "created",
            "error": str(error),
            "exit_code": code,
            "pid": 0,
        }
        with state.database.transaction() as tx:
            tx.execute(
                "UPDATE containers SET data = ?, image = ? WHERE id = ?",
                (record.pack(**changes), json.dumps(created.image), record.id),
            )
            if record.status == "creating":
                state.leases.erase(tx, record.id)
                tx.event("container.created", record.id, attributes(record))
        record.apply(cast("dict[str, Any]", changes))
