"""start: namespaces, network and process of a container, or none of them."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import partial
from typing import Any, cast

import attrs

from wherry.api import CreateRequest, Error, LogSink, Stdio, TaskState
from wherry.engine.containers import bundles
from wherry.engine.containers.create import Creator, ReadyContainer
from wherry.engine.containers.records import ExitEvent
from wherry.engine.containers.specs import EncodedSpec
from wherry.engine.networks.attach import Attacher, EndpointSet
from wherry.engine.networks.endpoints import pack_endpoints
from wherry.engine.state.state import State, attributes
from wherry.engine.state.undo import Undo


class Starter:
    def __init__(self, state: State, creation: Creator, attaching: Attacher) -> None:
        self._state = state
        self._creation = creation
        self._attaching = attaching

    def start(self, created: ReadyContainer, net: EndpointSet, stdio: Stdio, *, undo: Undo) -> None:
        """Starts a container that is not running, in what ``reserve`` gave; the caller holds its lock and, on any error, runs
        undo."""
        state, record = self._state, created.record
        written = self._creation.build(created, hostname=net.hostname, network=net.kind)
        bundle = state.bundle(record)
        self._bundle(created, net, str(bundle), written.text, undo)
        isolation = created.drivers.isolation
        net.made()
        undo.add("isolation", lambda: self._drop(created))
        request = CreateRequest(
            id=record.id,
            sandbox_id=record.sandbox_id,
            bundle=bundle,
            spec=written.spec,
            rootfs=created.mounts,
            stdio=self._stdio(created, stdio),
            start=not self._attaching.takes_long(net),
        )
        attached = self._attaching.begin(created, net)
        try:
            task = isolation.create(request)
        except BaseException:
            with suppress(Exception):
                attached()  # whatever came of it: the undo is to find it done
            raise
        attached()
        if task.status == "created":
            isolation.start(record.id)
        self._commit(created, net, task, written)
        record.process = written.spec.get("process")

    # the bundle

    def _bundle(self, created: ReadyContainer, net: EndpointSet, bundle: str, spec: str, undo: Undo) -> None:
        undo.add("bundle", partial(bundles.remove, bundle))
        bundles.make(bundle)
        bundles.write(bundle, {"config.json": spec.encode("ascii")})
        if net.kind != "shared":
            self._attaching.files(created, net)

    def _stdio(self, created: ReadyContainer, stdio: Stdio) -> Stdio:
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

    def _commit(self, created: ReadyContainer, net: EndpointSet, task: TaskState, written: EncodedSpec) -> None:
        state, record = self._state, created.record
        fresh = record.status == "creating"
        places = net.places
        changes: dict[str, Any] = {
            "status": "running",
            "pid": task.pid,
            "start_time": task.start_time,
            "started": time.time_ns(),
            "finished": 0,
            "exit_code": None,
            "oom_killed": False,
            "error": "",
            "networks": tuple(place.network for place in places),
            "addresses": tuple(address for place in places for address in place.addresses),
            "ports": record.ports if net.kept else net.ports,
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
            if net.seats:
                tx.execute(
                    "INSERT OR REPLACE INTO sandboxes VALUES (?, ?, ?, ?)",
                    (record.id, net.netns, changes["started"], pack_endpoints(places)),
                )
                for place in places:
                    tx.event("network.attached", record.id, {"network": place.network, "driver": place.driver})
            tx.event("task.started", record.id, attributes(record, pid=task.pid))
        if record.gate.is_set():
            record.gate = ExitEvent()
        record.apply(changes)
        if net.seats:
            state.attached[record.id] = places

    def _drop(self, created: ReadyContainer) -> None:
        """The undo of isolation.create: its process ends up unknown to driver and shim alike."""
        created.drivers.isolation.delete(created.record.id, force=True)
        self._state.forget(created.record.id)

    def failed(self, created: ReadyContainer, error: BaseException) -> None:
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
