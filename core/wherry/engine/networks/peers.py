"""Names of the others in a network, in /etc/hosts: for networks whose driver makes some and answers no names itself ("networks"
without "dns"), such as those of macvlan and CNI.

A container's file has them when its process begins, as it then is; as others come and go they are exchanged, between two marks, so that
what the container wrote there itself stays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from attrs import evolve

from wherry.api import Event, Unavailable
from wherry.engine.containers import bundles
from wherry.engine.containers.hostfiles import names_block, with_names
from wherry.engine.networks.endpoints import SandboxEndpoint
from wherry.kernel.log import logger as log
from wherry.kit import threads

if TYPE_CHECKING:
    from wherry.engine.containers.records import ContainerRecord
    from wherry.engine.state.state import State

#: So long a start may hold the record of a container that was told to be somewhere.
_PATIENCE = 10.0
_LIMIT = 1 << 20


class Peers:
    """Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._heard: list[Event] = []
        self._thread: threading.Thread | None = None

    @contextmanager
    def known(self, sandbox_id: str, places: Sequence[SandboxEndpoint]) -> Iterator[tuple[SandboxEndpoint, ...]]:
        """The places of others in those networks, with all the names that they have there, while the block writes them down."""
        wanted = {(place.network, place.driver) for place in places if self._nameless(place.driver)}
        if not wanted:
            yield ()
            return
        with self._writing:
            yield tuple(self._others(sandbox_id, wanted))

    def _others(self, sandbox_id: str, wanted: set[tuple[str, str]]) -> Iterator[SandboxEndpoint]:
        for id, places in sorted(self._state.attached.items()):
            if id == sandbox_id:
                continue
            for place in places:
                if (place.network, place.driver) in wanted and place.names and not place.pending:
                    yield evolve(place, names=(*place.names, id[:12], f"{place.names[0]}.{place.network}"))

    def _nameless(self, driver: str) -> bool:
        provides = self._state.kernel.capabilities("network", driver).provides
        return "networks" in provides and "dns" not in provides

    # what changes

    def heard(self, event: Event) -> None:
        """Takes note of an event, and does not wait for what follows from it."""
        if not event.topic.startswith("network.") or not event.topic.endswith("tached"):
            return
        if not self._nameless(event.attributes["driver"]):
            return
        with self._lock:
            self._heard.append(event)
            if self._thread is None:
                with suppress(Unavailable):  # the next event tries again
                    self._thread = threads.start(self._work, "wherry-peers")

    def _work(self) -> None:
        while True:
            with self._lock:
                events, self._heard = self._heard, []
                if not events:
                    self._thread = None
                    return
            for id in {event.id for event in events}:
                self._await(id)
            self.refresh({(event.attributes["network"], event.attributes["driver"]) for event in events})

    def _await(self, id: str) -> None:
        """Until the verb that told of it is through: only then it is known where the container is."""
        record = self._state.registry.get(id)
        if record is not None and record.lock.acquire(timeout=_PATIENCE):
            record.lock.release()

    def refresh(self, networks: set[tuple[str, str]]) -> None:
        """Exchanges the names in the files of all that run in networks, each given with its driver."""
        for record in list(self._state.registry):
            places = self._state.attached.get(record.id, ())
            if record.live and networks & {(place.network, place.driver) for place in places}:
                try:
                    self._rewrite(record, places)
                except OSError as error:
                    log.info("names of the others of container {}: {}", record.id[:12], error)

    def _rewrite(self, record: ContainerRecord, places: Sequence[SandboxEndpoint]) -> None:
        directory = str(self._state.bundle(record))
        with self.known(record.id, places) as peers:
            fd = os.open(f"{directory}/hosts", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                data = os.read(fd, _LIMIT + 1)
            finally:
                os.close(fd)
            if len(data) > _LIMIT:
                return  # the container made it so: nobody looks a name up there
            text = data.decode("utf-8", "surrogateescape")
            changed = with_names(text, names_block(peers))
            if changed != text:
                bundles.write(directory, {"hosts": changed.encode("utf-8", "surrogateescape")})


__all__ = ["Peers"]
