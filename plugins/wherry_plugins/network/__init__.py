"""Network drivers, and the base of those that have one network and nothing to configure in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs

from wherry.api import (
    Attachment,
    AttachRequest,
    Context,
    FailedPrecondition,
    InUse,
    Invalid,
    NetworkConfig,
    NotFound,
    Port,
    Reservation,
    Sandbox,
)
from wherry.kit.networks.single import BuiltinNetwork

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")


class SingleNetwork(BuiltinNetwork):
    """A Network whose only network is named like the driver. What is attached is remembered as one file a sandbox in the
    driver's run directory, so that it outlives the engine and not the boot.

    netns is what its reservations say; why completes the sentence "the network driver ... because ...".
    """

    netns: str = ""
    why: str = ""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._directory = context.run
        self._lock = threading.Lock()
        self._reserved: dict[str, Reservation] = {}

    # networks

    def inspect(self, name: str) -> tuple[NetworkConfig, tuple[Attachment, ...]]:
        self.own(name)
        requests = (self._read(path) for path in sorted(self._directory.iterdir()))
        return self.described(), tuple(
            self._attachment(Reservation(request, self.netns)) for request in requests if request is not None
        )

    # sandboxes

    def reserve(self, request: AttachRequest) -> Reservation:
        self.own(request.network)
        if not _ID.match(request.sandbox_id):
            raise Invalid(f'sandbox "{request.sandbox_id}"', "not an id")
        if request.ports:
            raise Invalid(
                f"port {request.ports[0].container_port}/{request.ports[0].protocol}",
                f'the network driver "{self.name}" cannot publish ports: {self.why}',
                "leave out --publish, or choose another network with --network",
            )
        if request.addresses or request.mac:
            raise Invalid(
                f'address "{(*request.addresses, request.mac)[0]}"',
                f'the network driver "{self.name}" cannot give addresses: {self.why}',
                "leave it out, or choose another network with --network",
            )
        reservation = Reservation(request, self.netns)
        with self._lock:
            if request.sandbox_id in self._reserved or os.path.lexists(f"{self._directory}/{request.sandbox_id}"):
                raise InUse(f'sandbox "{request.sandbox_id}"', f'has a place in network "{self.name}" already')
            self._reserved[request.sandbox_id] = reservation
        return reservation

    def attach(self, reservation: Reservation, sandbox: Sandbox) -> Attachment:
        request = reservation.request
        self.own(request.network)
        if (sandbox.netns == "host") is not (self.netns == "host"):
            raise FailedPrecondition(
                f'sandbox "{sandbox.id}"',
                f'its network namespace is "{sandbox.netns or "its own"}", not what network "{self.name}" reserved',
            )
        # Readers skip what they can't parse: a file cut short by a crash. os.open and os.write: this is on the path of each start.
        fd = os.open(f"{self._directory}/{sandbox.id}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(attrs.asdict(request, recurse=False)).encode())
        finally:
            os.close(fd)
        with self._lock:
            self._reserved.pop(sandbox.id, None)
        return self._attachment(reservation)

    def _attachment(self, reservation: Reservation) -> Attachment:
        return Attachment(reservation, mac="", addresses=(), gateways=())

    def detach(self, sandbox_id: str, network: str) -> None:
        if network != self.name or not _ID.match(sandbox_id):
            return
        with self._lock:
            self._reserved.pop(sandbox_id, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{sandbox_id}")

    def check(self, sandbox_id: str, network: str) -> None:
        self.own(network)
        if not _ID.match(sandbox_id) or not self._file(sandbox_id).exists():
            raise NotFound(f'sandbox "{sandbox_id}"', f'is not attached to network "{network}"')
        held = next((sandbox for sandbox in self._context.shim.sandboxes() if sandbox.id == sandbox_id), None)
        if held is None:
            raise FailedPrecondition(f'sandbox "{sandbox_id}"', "is attached, but no shim holds its namespaces")
        if (held.netns == "host") is not (self.netns == "host"):
            raise FailedPrecondition(
                f'sandbox "{sandbox_id}"', f'is attached to "{network}", but its network namespace is "{held.netns}"'
            )

    def gc(self, live: Collection[str]) -> int:
        keep = frozenset(live)
        with self._lock:
            gone = [id for id in self._reserved if id not in keep]
            for id in gone:
                del self._reserved[id]
        dropped = set(gone)
        for path in self._directory.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
                dropped.add(path.name)
        return len(dropped)

    # the directory

    def _file(self, sandbox_id: str) -> Path:
        return self._directory / sandbox_id

    @staticmethod
    def _read(path: Path) -> AttachRequest | None:
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            for key in ("names", "addresses"):
                data[key] = tuple(data[key])
            data["ports"] = tuple(Port(**port) for port in data["ports"])
            return AttachRequest(**data)
        except (OSError, ValueError, TypeError, KeyError):
            return None
