"""What the engine keeps in memory of each container, and how it and its request are written to the database."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast, get_origin, get_type_hints

import attrs

from wherry.api import Container, Event, Exit, IdMap, Kind, Port, RunRequest
from wherry.kit.codec import by_position, restore

_UNSET = RunRequest(image="")
_REQUEST_DEFAULTS: tuple[tuple[str, Any], ...] = tuple(
    (a.name, getattr(_UNSET, a.name)) for a in attrs.fields(RunRequest)
)


class ExitEvent(threading.Event):
    """Opens once a process has ended and all that follows from it is done; then ``exit`` is set, or ``error``."""

    def __init__(self) -> None:
        super().__init__()
        self.exit: Exit | None = None

    def open(self, exit: Exit) -> None:
        self.exit = exit
        self.set()


@attrs.define(eq=False)
class Exec:
    """One exec: kept in memory until its container stops. detached fds need no keeping: the shim has them."""

    id: str
    gate: ExitEvent
    pid: int = 0
    untold: list[Event] = attrs.field(factory=list)  # its start, as long as the bus has not heard of it
    telling: threading.Lock = attrs.field(factory=threading.Lock)

    def tell(self, publish: Callable[[Event], object]) -> None:
        """Publishes its start, once, and before what follows."""
        with self.telling:
            while self.untold:
                publish(self.untold.pop())


@attrs.frozen
class MountedVolume:
    """A volume in a container. anonymous: it was made for this container alone and goes with it where that is wished."""

    name: str
    driver: str
    target: str
    options: tuple[str, ...] = ()
    anonymous: bool = False


@attrs.define(eq=False)
class ContainerRecord:
    """A container as the engine holds it. Fields before ``lock`` are stored; they change by ``apply``, under the lock and after
    the commit.

    status is that of ``api.Container``. chain_id and image_id are of the image it was made from, snapshot is its key in the
    snapshotter, generation counts its starts.
    """

    id: str
    name: str
    image: str
    image_digest: str = ""
    image_id: str = ""
    chain_id: str = ""
    command: tuple[str, ...] = ()
    created: int = 0
    status: str = "creating"
    pid: int = 0
    start_time: int = 0
    started: int = 0
    finished: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    labels: Mapping[str, str] = attrs.field(factory=dict)
    ports: tuple[Port, ...] = ()
    networks: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    variant: str = ""
    drivers: Mapping[str, str] = attrs.field(factory=dict)
    sandbox_id: str = ""
    remove: bool = False
    tty: bool = False
    error: str = ""
    stop_signal: str = ""
    stop_timeout: float = 10.0
    log: str = ""
    generation: int = 0
    platform: str = ""
    user: str = ""
    volumes: tuple[MountedVolume, ...] = ()
    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()
    """The map of its user namespace, both empty without one of its own."""
    # not stored
    lock: threading.RLock = attrs.field(factory=threading.RLock, repr=False)
    gate: ExitEvent = attrs.field(factory=ExitEvent, repr=False)
    execs: dict[str, Exec] = attrs.field(factory=dict, repr=False)
    removing: bool = False
    traced: bool = False
    request: RunRequest | None = attrs.field(default=None, repr=False)
    process: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    """The OCI process object of the running container: execs start from it."""
    _view: Container | None = attrs.field(default=None, init=False, repr=False)

    @property
    def live(self) -> bool:
        return self.status in ("running", "paused")

    @property
    def idmap(self) -> IdMap:
        return IdMap(self.uids, self.gids)

    def view(self) -> Container:
        """The record as front ends see it."""
        if self._view is None:
            self._view = self._make_view()
        return self._view

    def _make_view(self) -> Container:
        return Container(
            id=self.id,
            name=self.name,
            image=self.image,
            image_digest=self.image_digest,
            command=self.command,
            created=self.created,
            status=cast("Any", self.status),
            pid=self.pid,
            started=self.started,
            finished=self.finished,
            exit_code=self.exit_code,
            oom_killed=self.oom_killed,
            labels=self.labels,
            ports=self.ports,
            networks=self.networks,
            addresses=self.addresses,
            variant=self.variant,
            drivers=cast("Mapping[Kind, str]", self.drivers),
            sandbox_id=self.sandbox_id,
            remove=self.remove,
            tty=self.tty,
            error=self.error,
        )

    def pack(self, **changes: Any) -> str:
        """JSON of what is stored, with changes that memory does not have yet."""
        data = {name: getattr(self, name) for name in _STORED}
        data.update(changes)
        return json.dumps(data, default=by_position, separators=(",", ":"))

    def apply(self, changes: Mapping[str, Any]) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self._view = None


_STORED = tuple(a.name for a in attrs.fields(ContainerRecord))
_STORED = _STORED[: _STORED.index("lock")]
#: The fields that hold tuples, with what they hold.
_TUPLES = {
    name: hint
    for name, hint in get_type_hints(ContainerRecord).items()
    if name in _STORED and get_origin(hint) is tuple
}


def unpack_record(text: str) -> ContainerRecord:
    """A record as ``ContainerRecord.pack`` wrote it. Fields that a newer minor version added and this one does not know are dropped."""
    data = json.loads(text)
    if not data.keys() <= _STORED_SET:
        data = {name: value for name, value in data.items() if name in _STORED_SET}
    for name, hint in _TUPLES.items():  # of ten thousand records most have nothing in most of them
        if name in data:
            data[name] = restore(hint, data[name]) if data[name] else ()
    return ContainerRecord(**data)


_STORED_SET = frozenset(_STORED)


def pack_request(request: RunRequest, *, named: bool = True) -> str:
    """A request as JSON: only what differs from the defaults. named False: without what tells containers of one kind apart."""
    data = {name: value for name, default in _REQUEST_DEFAULTS if (value := getattr(request, name)) != default}
    data["image"] = request.image
    if not named:
        data.pop("name", None)
    return json.dumps(data, default=by_position, separators=(",", ":"))


def unpack_request(text: str) -> RunRequest:
    """The request that ``pack_request`` wrote."""
    return restore(RunRequest, json.loads(text))


def plain_request(request: RunRequest) -> dict[str, Any]:
    """All fields of a request as plain data, for ``inspect``."""
    return cast("dict[str, Any]", json.loads(json.dumps(attrs.asdict(request), default=by_position)))
