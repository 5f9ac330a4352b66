"""Drivers with one built-in network, named like themselves, and those of them that have nothing to configure in it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import attrs

from wherry.api import (
    Attachment,
    AttachRequest,
    Context,
    Error,
    FailedPrecondition,
    InUse,
    Invalid,
    NetworkConfig,
    NotFound,
    Reservation,
    Sandbox,
)
from wherry.kit.codec import restore
from wherry.kit.names import check_name, is_name


class BuiltinNetwork:
    """Part of a ``wherry.api.Network``: create, remove and list; a subclass says its name, and by ``described`` what its network is."""

    name = ""

    def described(self) -> NetworkConfig:
        return NetworkConfig(self.name)

    def create(self, config: NetworkConfig) -> NetworkConfig:
        raise Invalid(
            f'network "{config.name}"',
            f'the network driver "{self.name}" has the one network "{self.name}" and cannot make others',
            "choose another network driver",
        )

    def remove(self, name: str) -> None:
        if name == self.name:
            raise Invalid(f'network "{name}"', "is built in and can't be removed")

    def list(self) -> Iterator[NetworkConfig]:
        yield self.described()

    def own(self, name: str) -> None:
        """NotFound unless that is the name of the one network."""
        if name != self.name:
            raise NotFound(f'network "{name}"', f'the network driver "{self.name}" only has "{self.name}"')


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
        check_name(request.sandbox_id, "sandbox id")
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
        if network != self.name or not is_name(sandbox_id):
            return
        with self._lock:
            self._reserved.pop(sandbox_id, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{sandbox_id}")

    def check(self, sandbox_id: str, network: str) -> None:
        self.own(network)
        if not is_name(sandbox_id) or not self._file(sandbox_id).exists():
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
            return restore(AttachRequest, json.loads(path.read_text()))
        except (OSError, ValueError, Error):
            return None


__all__ = ["BuiltinNetwork", "SingleNetwork"]
