"""Volumes: what of a container outlives it. The drivers keep them; which containers use which is told by the containers' records."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from wherry.api import Bind, Error, IdMap, InUse, Invalid, Mount, NotFound, Unavailable, Volume, VolumeDriver
from wherry.engine.containers.records import MountedVolume
from wherry.engine.containers.specs.mounts import clean_target
from wherry.engine.state.locks import KeyedLocks
from wherry.engine.state.undo import Undo
from wherry.kernel.log import logger as log
from wherry.kit.names import check_labels
from wherry.layers.paths import begun

if TYPE_CHECKING:
    from wherry.engine.containers.create import ReadyContainer
    from wherry.engine.containers.records import ContainerRecord
    from wherry.engine.state.state import State

#: Docker's own label for a volume that has no name but an id.
ANONYMOUS = "com.docker.volume.anonymous"
NO_COPY = "nocopy"
#: So long somebody else may be at work on a volume, in seconds; filling one with an image's files takes its time.
PATIENCE = 600.0


class Volumes:
    def __init__(self, state: State) -> None:
        self._state = state
        self._locks = KeyedLocks()

    @contextmanager
    def _holding(self, name: str) -> Iterator[None]:
        try:
            with self._locks.hold(name, PATIENCE):
                yield
        except TimeoutError:
            raise Unavailable(f'volume "{name}"', "somebody else is at work on it", "try again") from None

    def _driver(self, id: str) -> VolumeDriver:
        id = id or self._state.settings.volume
        if not id:
            raise Invalid("volume", "no volume driver is configured", 'set one: [engine] volume = "local"')
        return self._state.kernel.volume(id)

    # for containers

    def provide(self, created: ReadyContainer, undo: Undo) -> None:
        """Makes the volumes that request and image ask for, filled with what the image has there, and notes them in the record."""
        wishes = self._wishes(created)
        for wish in wishes:
            name, anonymous = wish.source, not wish.source
            name = name or secrets.token_hex(32)
            use = MountedVolume(name, self._state.settings.volume, wish.target, wish.options, anonymous)
            with self._holding(name):
                known = None if anonymous else self._find(name)
                if known is not None:
                    use = attrs.evolve(use, driver=known.driver)
                record = created.record
                # First it is in use, then it is there: nobody removes it in between.
                record.apply({"volumes": (*record.volumes, use)})
                if anonymous:
                    self._note(record)
                driver = self._driver(use.driver)
                if known is None:
                    undo.add("volume", lambda use=use: self._take_back(created.record, use))  # type: ignore[misc]
                    labels = {ANONYMOUS: ""} if anonymous else {}
                    known = driver.create(name, {}, labels)
                    self._tell("volume.created", known)
                self._fill(created, use, driver.mounts(name, record.id))

    def _note(self, record: ContainerRecord) -> None:
        """Writes what a container has before it is made: should the engine be killed, the next one finds it and takes it away."""
        with self._state.database.transaction(durable=False) as tx:
            tx.execute("UPDATE containers SET data = ? WHERE id = ?", (record.pack(), record.id))

    def _wishes(self, created: ReadyContainer) -> list[Bind]:
        """The volumes that a container is to have: its request's, and for each path that its image names one without a name."""
        request = created.request
        taken = {clean_target(wish.target) for wish in request.mounts}
        wishes = [wish for wish in request.mounts if wish.type == "volume"]
        for path in created.image.get("Volumes") or {}:
            target = clean_target(str(path))
            if target not in taken:
                taken.add(target)
                wishes.append(Bind("volume", "", target))
        return wishes

    def _fill(self, created: ReadyContainer, use: MountedVolume, mounts: tuple[Mount, ...]) -> None:
        """With what the image has at its place, as docker; one that holds something already stays as it is."""
        if len(mounts) != 1 or "bind" not in (mounts[0].type, *mounts[0].options):
            return
        with os.scandir(mounts[0].source) as entries:
            empty = next(entries, None) is None
        path = "" if NO_COPY in use.options else use.target
        if not (path and empty) and not begun(mounts[0].source):
            return
        (self._state.root / "tmp").mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._state.root / "tmp") as spool:
            # Whatever ids the container sees: a volume has those of the image, as its layers have.
            image = tuple(attrs.evolve(mount, idmap=IdMap()) for mount in created.mounts)
            self._state.kernel.workers.populate(mounts, image, path, spool)

    def _take_back(self, record: ContainerRecord, use: MountedVolume) -> None:
        with self._holding(use.name):
            record.apply({"volumes": tuple(other for other in record.volumes if other is not use)})
            if not self.users(use.name):
                self._driver(use.driver).remove(use.name)

    def mounts(self, record: ContainerRecord) -> dict[str, tuple[Mount, ...]]:
        """The mounts of a container's volumes, by target."""
        return {use.target: self._driver(use.driver).mounts(use.name, record.id) for use in record.volumes}

    def unmount(self, record: ContainerRecord) -> None:
        """At the end of a run."""
        for use in record.volumes:
            self._driver(use.driver).unmount(use.name, record.id)

    def drop_anonymous(self, record: ContainerRecord) -> None:
        """Removes what was made for a container alone, once that is gone."""
        for use in record.volumes:
            if use.anonymous:
                with self._holding(use.name):
                    if not [user for user in self.users(use.name) if user is not record]:
                        self._driver(use.driver).remove(use.name)

    def users(self, name: str) -> list[ContainerRecord]:
        """The containers that have a volume, running or not."""
        return [record for record in self._state.registry if any(use.name == name for use in record.volumes)]

    # for front ends

    def create(self, name: str, driver: str, options: Mapping[str, str], labels: Mapping[str, str]) -> Volume:
        """A new volume, or the one of that name; "" has one made up."""
        check_labels(labels)
        named = dict(labels) if name else {**labels, ANONYMOUS: ""}
        name = name or secrets.token_hex(32)
        with self._holding(name):
            known = self._find(name)
            if known is not None:
                if driver and known.driver != driver:
                    raise Invalid(f'volume "{name}"', f"exists, of the driver {known.driver}")
                return known
            made = self._driver(driver).create(name, options, named)
            self._tell("volume.created", made)
            return made

    def every(self) -> tuple[Volume, ...]:
        """Of all drivers that can be used, by name."""
        found: list[Volume] = []
        for id in self._state.kernel.usable("volume"):
            try:
                found += self._state.kernel.volume(id).list()
            except (Error, OSError) as error:
                log.warning("volume driver {}: {}", id, error)
        return tuple(sorted(found, key=lambda volume: volume.name))

    def _find(self, name: str) -> Volume | None:
        default = self._state.settings.volume
        for id in sorted(self._state.kernel.usable("volume"), key=lambda id: id != default):
            try:
                return self._state.kernel.volume(id).get(name)
            except NotFound:
                continue
        return None

    def get(self, name: str) -> Volume:
        """NotFound when no driver has it."""
        if (found := self._find(name)) is None:
            raise NotFound(f'volume "{name}"', "no such volume")
        return found

    def remove(self, name: str, *, force: bool) -> None:
        """InUse while a container has it, running or not. force: one that is not there is no error."""
        with self._holding(name):
            found = self._find(name)
            if found is None:
                if force:
                    return
                raise NotFound(f'volume "{name}"', "no such volume")
            if users := self.users(name):
                user = users[0]
                raise InUse(f'volume "{name}"', f'container "{user.name}" ({user.id[:12]}) has it', "remove that first")
            self._driver(found.driver).remove(name)
            self._tell("volume.removed", found)

    def prune(self, *, all: bool) -> tuple[str, ...]:
        """Removes volumes that no container has: those without a name of their own, or all."""
        gone = []
        for volume in self.every():
            if all or ANONYMOUS in volume.labels:
                try:
                    self.remove(volume.name, force=False)
                except (InUse, NotFound):
                    continue
                gone.append(volume.name)
        return tuple(gone)

    def _tell(self, topic: str, volume: Volume) -> None:
        with self._state.database.transaction(durable=False) as tx:
            tx.event(topic, volume.name, {"driver": volume.driver})
