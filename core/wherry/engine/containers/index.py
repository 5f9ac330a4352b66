"""All containers of a root in memory, found by id, name or a unique prefix of the id."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from wherry.api import AlreadyExists, Invalid, NotFound
from wherry.engine.containers.names import random_name
from wherry.engine.containers.records import ContainerRecord

#: So many removed containers are remembered, so that whoever waits for one that was gone at once learns how it ended.
GRAVES = 2048


class ContainerIndex:
    """Thread-safe. A name is taken from ``reserve`` on until ``drop``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, ContainerRecord] = {}
        self._names: dict[str, ContainerRecord] = {}
        self._graves: OrderedDict[str, ContainerRecord] = OrderedDict()

    def reserve(self, record: ContainerRecord) -> None:
        """Adds a record; one without a name gets a random one. AlreadyExists when the name is taken."""
        with self._lock:
            if not record.name:
                attempt = 0
                while (name := random_name(attempt)) in self._names:
                    attempt += 1
                record.name = name
            elif (other := self._names.get(record.name)) is not None:
                raise AlreadyExists(
                    f'container name "{record.name}"',
                    f"in use by container {other.id[:12]}",
                    "remove that container, or choose another name",
                )
            self._names[record.name] = record
            self._records[record.id] = record

    @contextmanager
    def renamed(self, record: ContainerRecord, name: str) -> Iterator[None]:
        """Both names are the container's while the block writes the new one down; then the old one is free, or the new one is where
        the block raises. AlreadyExists when the name is taken, by the container itself too."""
        with self._lock:
            if (other := self._names.get(name)) is not None:
                raise AlreadyExists(
                    f'container name "{name}"',
                    "is its own already" if other is record else f"in use by container {other.id[:12]}",
                    "" if other is record else "remove that container, or choose another name",
                )
            self._names[name] = record
        free = name
        try:
            yield
            free = record.name
            record.apply({"name": name})
        finally:
            with self._lock:
                del self._names[free]

    def drop(self, record: ContainerRecord, *, remember: bool = True) -> None:
        """Takes a record out; ``grave`` still finds it for a while. Nothing happens when it is gone."""
        with self._lock:
            if self._records.pop(record.id, None) is None:
                return
            record.removing = True  # for whoever found it before, and waits for its lock
            if self._names.get(record.name) is record:
                del self._names[record.name]
            if remember:
                record.request = record.process = None
                self._graves[record.id] = record
                while len(self._graves) > GRAVES:
                    self._graves.popitem(last=False)

    def get(self, id: str) -> ContainerRecord | None:
        return self._records.get(id)

    def find(self, name: str) -> ContainerRecord:
        """By full id, then name, then prefix of the id. NotFound; Invalid for a prefix of several."""
        if (record := self._records.get(name)) is not None:
            return record
        if (record := self._names.get(name.removeprefix("/"))) is not None:
            return record
        with self._lock:
            found = [record for id, record in self._records.items() if id.startswith(name)] if name else []
        if len(found) == 1:
            return found[0]
        if found:
            raise Invalid(f'container "{name}"', f"{len(found)} ids begin so", "give more of the id")
        raise NotFound(f'container "{name}"', "no such container")

    def find_or_grave(self, name: str) -> ContainerRecord:
        """Like ``find``, and a container that was removed a short while ago, by its full id."""
        try:
            return self.find(name)
        except NotFound:
            with self._lock:
                if (record := self._graves.get(name)) is not None:
                    return record
            raise

    def members(self, sandbox_id: str) -> list[ContainerRecord]:
        """The containers of one sandbox."""
        with self._lock:
            return [record for record in self._records.values() if record.sandbox_id == sandbox_id]

    def __iter__(self) -> Iterator[ContainerRecord]:
        with self._lock:
            return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)
