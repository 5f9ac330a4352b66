"""create: from a request to a container that could be started, or to nothing at all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import define, evolve

from wherry.api import Exit, FailedPrecondition, Invalid, Kind, Mount, NotFound, RunRequest, SnapshotOptions
from wherry.engine.containers import signals, specs, userns
from wherry.engine.containers.records import ContainerRecord, pack_request
from wherry.engine.containers.specs.builder import RESERVED, check_hostname
from wherry.engine.state.state import State, attributes
from wherry.engine.state.undo import Undo
from wherry.kit.names import check_labels, check_name
from wherry.linux.userns import confined
from wherry.spec import runtime

if TYPE_CHECKING:
    from threading import RLock

    from wherry.kernel import Drivers

_HEX = frozenset("0123456789abcdef")
_DURABLE, _FLEETING = SnapshotOptions(), SnapshotOptions(durable=False)
_ONCE = SnapshotOptions(durable=False, volatile=True)


@define
class ContainerDraft:
    """A container in the making."""

    record: ContainerRecord
    request: RunRequest
    drivers: Drivers
    packed: str
    """The request as JSON."""


@define
class ReadyContainer(ContainerDraft):
    """A container that is not running, and what a start would otherwise have to look up again."""

    image: Mapping[str, Any]
    mounts: tuple[Mount, ...]


class Creator:
    def __init__(self, state: State) -> None:
        self._state = state
        self._templates = specs.SpecTemplates()

    def begin(self, request: RunRequest, id: str, lock: RLock, *, undo: Undo) -> ContainerDraft:
        """Takes the name and writes the row, status "creating", under a lease. The caller holds lock, the record's, as it can be
        found by others from here on. On any error the caller runs undo."""
        state = self._state
        drivers = self._drivers(request, request.snapshotter)
        if not request.snapshotter and userns.remaps(request.userns):
            provides = drivers.capabilities["snapshotter"].provides
            if userns.REMAP not in provides and (
                other := state.kernel.able(request.variant, "snapshotter", userns.REMAP)
            ):
                drivers = self._drivers(request, other)
        request = self._by_name(request, drivers)
        record = self._record(id, request, drivers, lock)
        packed = pack_request(request)
        if request.userns or record.sandbox_id != record.id:
            with state.ranges:
                self._take_ids(record, request)
                state.registry.reserve(record)
        else:
            state.registry.reserve(record)
        undo.add("registry", lambda: self._forget(record))
        # Not synced to disk: nobody was told yet, and after a crash of the machine nothing of it matters.
        with state.database.transaction(durable=False) as tx:
            tx.execute(
                "INSERT INTO containers (id, name, sandbox, created, data, request) VALUES (?, ?, ?, ?, ?, ?)",
                (record.id, record.name, record.sandbox_id, record.created, record.pack(), packed),
            )
            state.leases.write(tx, record.id)
        undo.add("row", lambda: self._erase(record))
        return ContainerDraft(record, request, drivers, packed)

    def complete(self, begun: ContainerDraft, *, undo: Undo, durable: bool = True) -> ReadyContainer:
        """Image and snapshot. The status stays: whoever makes it another one also ends the lease. durable: whether the container
        is to outlive a crash of the machine."""
        state = self._state
        record, request, drivers = begun.record, begun.request, begun.drivers
        with state.leases.under(record.id) as lease:
            lease.add(f"snapshot/{record.drivers['snapshotter']}/{record.id}")
            ready = state.images.ensure(request.image, drivers, request.platform, request.pull)
            image = ready.config.get("config") or {}
            self._take_image(record, request, ready, image)
            # A worker that fills volumes mounts it as well, and an overlay that is volatile can be mounted but once.
            fills = bool(image.get("Volumes")) or any(wish.type == "volume" for wish in request.mounts)
            options = _DURABLE if durable else _FLEETING if fills else _ONCE
            if (idmap := userns.shifted(record.idmap)).uids:
                options = evolve(options, idmap=idmap)
            mounts = drivers.snapshotter.prepare(record.id, ready.chain_id, options)
            undo.add("snapshot", lambda: drivers.snapshotter.remove(record.id))
            created = ReadyContainer(record, request, drivers, begun.packed, image, mounts)
            if fills:
                state.volumes.provide(created, undo)
        return created

    def create(self, request: RunRequest, id: str, lock: RLock, *, undo: Undo) -> ContainerRecord:
        """The container, to be started later; on any error the caller, who holds the lock, runs undo, and nothing is left."""
        state = self._state
        created = self.complete(self.begin(request, id, lock, undo=undo), undo=undo)
        record = created.record
        written = self.build(created)
        changes = {"status": "created"}
        with state.database.transaction() as tx:
            tx.execute(
                "UPDATE containers SET data = ?, image = ?, spec = ?, owners = ? WHERE id = ?",
                (record.pack(**changes), json.dumps(created.image), written.text, written.owners_text, record.id),
            )
            state.leases.erase(tx, record.id)
            tx.event("container.created", record.id, attributes(record))
        record.apply(changes)
        return record

    def _drivers(self, request: RunRequest, snapshotter: str) -> Drivers:
        return self._state.kernel.variant(
            request.variant, store=request.store, snapshotter=snapshotter, isolation=request.isolation
        )

    def _by_name(self, request: RunRequest, drivers: Drivers) -> RunRequest:
        """With the names of networks that the request has by id."""

        def name_of(network: str) -> str:
            return self._state.find_network(network, drivers)[0] if network and _HEX.issuperset(network) else network

        asked = (request.network, *(join.network for join in request.networks))
        names = tuple(map(name_of, asked))
        if names == asked:  # all but always
            return request
        others = (evolve(join, network=name) for join, name in zip(request.networks, names[1:], strict=True))
        return evolve(request, network=names[0], networks=tuple(others))

    def _record(self, id: str, request: RunRequest, drivers: Drivers, lock: RLock) -> ContainerRecord:
        state = self._state
        if request.name:
            check_name(request.name, "container name")
        if request.hostname:
            check_hostname(request.hostname)
        if request.stop_signal:
            signals.parse(request.stop_signal)
        check_labels(request.labels)
        sandbox_id, network_driver = self._sandbox(request, drivers)
        log = request.log or state.settings.log or "none"
        if log != "none":
            state.kernel.log(log)
        kinds: tuple[Kind, ...] = ("store", "snapshotter", "isolation")
        ids: dict[str, str] = {kind: drivers.ids[kind] for kind in kinds}
        if network_driver:
            ids["network"] = network_driver
        return ContainerRecord(
            id=id,
            name=request.name,
            image=request.image,
            created=time.time_ns(),
            variant=drivers.name,
            drivers=ids,
            sandbox_id=sandbox_id or id,
            remove=request.remove,
            tty=request.tty,
            stop_timeout=request.stop_timeout,
            log=log,
            ports=request.ports,
            platform=request.platform,
            request=request,
            lock=lock,
            traced=request.trace,
        )

    def _take_ids(self, record: ContainerRecord, request: RunRequest) -> None:
        """The map of its user namespace: that of the sandbox it joins, else what the request asks for."""
        state = self._state
        members = [other for other in state.registry if other.sandbox_id == record.sandbox_id]
        if members:
            if request.userns and userns.parse(request.userns)[0] != "host":
                raise Invalid(
                    "user namespace", f"belongs to the network of {request.network}", "set it on that container"
                )
            idmap = members[0].idmap
        else:
            idmap = userns.choose(request.userns, state.settings.userns, state.registry)
        snapshotter = record.drivers["snapshotter"]
        userns.check(idmap, state.kernel.capabilities("snapshotter", snapshotter).provides, snapshotter)
        record.uids, record.gids = idmap.uids, idmap.gids

    def _sandbox(self, request: RunRequest, drivers: Drivers) -> tuple[str, str]:
        """(sandbox to join or "", network driver or "")."""
        state = self._state
        joined = request.network.removeprefix("container:")
        if joined != request.network:
            other = state.registry.find(joined)
            self._refuse_in_joined(request)
            return other.sandbox_id, ""
        if request.sandbox_id:
            if not any(sandbox.id == request.sandbox_id for sandbox in state.shim.sandboxes()):
                raise NotFound(f'sandbox "{request.sandbox_id}"', "no such sandbox")
            return request.sandbox_id, ""
        ids = [
            state.find_network(name, drivers)[1] for name in (request.network, *(j.network for j in request.networks))
        ]
        state.check_ports(request, ids)
        return "", ids[0]

    @staticmethod
    def _refuse_in_joined(request: RunRequest) -> None:
        for option, value in (
            ("hostname", request.hostname),
            ("published port", request.ports),
            ("mac address", request.mac),
            ("address", request.addresses),
            ("network", request.networks),
            ("extra host", request.extra_hosts),
            ("dns server", request.dns),
        ):
            if value:
                raise Invalid(option, f"belongs to the network of {request.network}", "set it on that container")

    def _take_image(self, record: ContainerRecord, request: RunRequest, ready: Any, image: Mapping[str, Any]) -> None:
        # Labels of an image must not speak to us (CVE-2026-53488): those in our own name space are dropped.
        labels = {
            str(key): str(value)
            for key, value in (image.get("Labels") or {}).items()
            if not str(key).startswith(RESERVED)
        }
        record.apply(
            {
                "image_digest": ready.image.target.digest,
                "image_id": ready.image.id,
                "chain_id": ready.chain_id,
                "command": specs.command_of(image, request)[0],
                "labels": {**labels, **request.labels},
                "stop_signal": request.stop_signal or self._image_signal(image),
                "user": request.user or userns.user_kept(request.userns, record.idmap) or str(image.get("User") or ""),
            }
        )

    @staticmethod
    def _image_signal(image: Mapping[str, Any]) -> str:
        text = str(image.get("StopSignal") or "TERM")
        try:
            signals.parse(text)
        except Invalid:
            return "TERM"
        return text

    def hostname(self, created: ContainerDraft, host: bool) -> str:
        """The request's, else the host's where its network is used, else the short id of the sandbox's first container."""
        if created.request.hostname:
            return created.request.hostname
        return socket.gethostname()[:64] if host else created.record.sandbox_id[:12]

    def build(self, created: ReadyContainer, *, hostname: str = "", network: str = "own") -> specs.EncodedSpec:
        """The spec with the adjusters' changes in it, judged by the validators."""
        state, record = self._state, created.record
        volumes = state.volumes.mounts(record) if record.volumes else {}
        written = self._templates.build(
            specs.SpecInputs(
                id=record.id,
                image=created.image,
                request=specs.with_volumes(
                    created.request, record.volumes, own_ids=bool(record.uids) and not confined()
                ),
                hostname=hostname or created.request.hostname or record.id[:12],
                cgroups_path=f"{state.cgroup}/{record.id}",
                files=state.bundles / record.sandbox_id,
                network=network,
                volumes=volumes,
            ),
            record.image_id,
            pack_request(created.request, named=False) if created.request.name else created.packed,
        )
        if record.uids:
            wish = created.request.userns
            kept = "" if created.request.user else userns.user_kept(wish, record.idmap)
            named = userns.accounts(wish, record.idmap)
            written = specs.write(userns.fit(dict(written.spec), record.idmap, kept, named), written.owners)
        spec, adjusted = state.kernel.adjust(written.spec, created.request)
        if adjusted:  # a stranger's hand
            runtime.check(spec, f"spec, changed by {', '.join(sorted(set(adjusted.values())))},")
            written = specs.write(dict(spec), {**written.owners, **adjusted})
        state.kernel.validate(written.spec, written.owners)
        return written

    def again(self, record: ContainerRecord) -> ReadyContainer:
        """What a start of a container needs that was made before; the image itself may be gone by now."""
        state = self._state
        drivers = state.drivers(record)
        rows = state.database.all("SELECT image FROM containers WHERE id = ?", (record.id,))
        if not rows:
            raise NotFound(f'container "{record.name}"', "no such container")
        image = json.loads(rows[0][0])
        request, mounts = state.request_of(record), drivers.snapshotter.mounts(record.id)
        return ReadyContainer(record, request, drivers, pack_request(request), image, mounts)

    def _forget(self, record: ContainerRecord) -> None:
        self._state.registry.drop(record, remember=False)
        record.gate.open(Exit(None, time.time_ns()))  # whoever waits for its end waits for nothing

    def _erase(self, record: ContainerRecord) -> None:
        state = self._state
        with state.database.transaction(durable=False) as tx:
            tx.execute("DELETE FROM containers WHERE id = ?", (record.id,))
            state.leases.erase(tx, record.id)


def must_not_be_removing(record: ContainerRecord) -> None:
    """FailedPrecondition while a removal is under way."""
    if record.removing:
        raise FailedPrecondition(f'container "{record.name}"', "is being removed")
