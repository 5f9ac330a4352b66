"""Turns an image's layers into committed snapshots, each named by its chain-id, whoever the snapshotter is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.api import (
    AlreadyExists,
    Descriptor,
    Digest,
    Invalid,
    Mount,
    NotFound,
    Progress,
    SnapshotInfo,
    SnapshotOptions,
    Snapshotter,
)
from wherry.engine.content import Content
from wherry.engine.database import boot_id
from wherry.engine.keyed import KeyedLocks
from wherry.layers.mounts import syncfs

if TYPE_CHECKING:
    from wherry.api import Workers
    from wherry.engine.leases import Lease
    from wherry.kernel import Drivers, Kernel

#: Label of a snapshot that takes a layer; the key begins with the same word.
UNPACK = "wherry.unpack"
PREFIX = "unpack-"


#: Label of a committed snapshot whose files may not be on disk yet: the id of the boot in whose memory they are.
UNSYNCED = "wherry.unsynced"


class Unpacker:
    """Layers are committed one by one as they come; one syncfs(2) for all of them ends the work. What a power cut left of an
    image that was never ready is recognised by its boot and goes before the first use."""

    def __init__(self, kernel: Kernel, workers: Workers, hold: Callable[[Lease, str], None]) -> None:
        self._kernel = kernel
        self._workers = workers
        self._hold = hold
        self._locks = KeyedLocks()
        self._boot = boot_id()
        self._sound: set[str] = set()  # snapshotters without remains of an earlier boot

    def unpack(
        self, content: Content, drivers: Drivers, lease: Lease, report: Callable[[Progress], None],
        landed: Callable[[str], None] = lambda digest: None,
    ) -> str:  # fmt: skip
        """The chain-id of the whole, unpacked in drivers' snapshotter. Callers for the same chain wait for the first.

        landed waits until a layer is in the store: while one is unpacked the next ones come. Invalid when a layer's diff-id is not
        the one that the config names.
        """
        chain = content.config.chain_ids()
        if not chain:
            return ""
        id = drivers.ids["snapshotter"]
        if id not in self._sound:
            self._void(drivers.snapshotter, id)
        for name in chain:
            self._hold(lease, f"snapshot/{id}/{name}")
        top = self._find(drivers, chain[-1])
        if top is not None and UNSYNCED not in top.labels:
            return chain[-1]
        start = max((number for number, name in enumerate(chain) if self._find(drivers, name)), default=-1) + 1
        for number in range(start, len(chain)):
            parent = chain[number - 1] if number else ""
            landed(content.manifest.layers[number].digest)
            with self._locks.hold((id, chain[number])):
                if not self._find(drivers, chain[number]):
                    layer, diff_id = content.manifest.layers[number], content.config.diff_ids[number]
                    report(Progress(layer.digest, "unpacking", 0, layer.size))
                    self._layer(drivers, chain[number], parent, layer, diff_id, lease)
                    report(Progress(layer.digest, "done", layer.size, layer.size))
        with self._locks.hold((id, chain[-1], "sync")):
            self._sync(drivers, id, chain)
        return chain[-1]

    def _layer(
        self, drivers: Drivers, name: str, parent: str, layer: Descriptor, diff_id: Digest, lease: Lease
    ) -> None:
        snapshotter, id = drivers.snapshotter, drivers.ids["snapshotter"]
        key = f"{PREFIX}{secrets.token_hex(8)}-{name}"
        self._hold(lease, f"snapshot/{id}/{key}")
        mounts = snapshotter.prepare(key, parent, SnapshotOptions(labels={UNPACK: name}))
        labels = {}
        try:
            with drivers.store.open(layer.digest) as stream:
                if "apply" in self._kernel.capabilities("snapshotter", id).provides:
                    found = snapshotter.apply(key, layer, stream)
                else:
                    later = self._is_ours(id, mounts)
                    found = self._workers.unpack(mounts, layer, stream, sync=not later)
                    labels = {UNSYNCED: self._boot} if later else {}
            if found != diff_id:
                raise Invalid(f'layer "{layer.digest}"', f"unpacks to the diff-id {found}, the config says {diff_id}")
            snapshotter.commit(name, key, labels)
        except AlreadyExists:  # another engine's client of the same snapshotter was quicker
            snapshotter.remove(key)
        except BaseException:
            snapshotter.remove(key)
            raise

    def _directory(self, id: str) -> Path:
        return self._kernel.root / "snapshotter" / id

    def _is_ours(self, id: str, mounts: tuple[Mount, ...]) -> bool:
        """Whether the files go below the driver's own directory, so that a sync there takes them all."""
        below = f"{self._directory(id)}/"
        for option in mounts[0].options:
            if option.startswith("upperdir="):
                return option.startswith(f"upperdir={below}")
        return mounts[0].type == "bind" and mounts[0].source.startswith(below)

    def _sync(self, drivers: Drivers, id: str, chain: Sequence[str]) -> None:
        """Puts on disk what is not there yet, and says so, the lowest layer first: one that says it stands on ones that do."""
        waiting = [name for name in chain if (info := self._find(drivers, name)) and UNSYNCED in info.labels]
        if not waiting:
            return
        fd = os.open(self._directory(id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        for name in waiting:
            drivers.snapshotter.update(name, {UNSYNCED: None})

    def _void(self, snapshotter: Snapshotter, id: str) -> None:
        """Removes what an earlier boot committed and did not sync, children first. Nothing was ever started from it."""
        while True:
            infos = list(snapshotter.walk())
            parents = {info.parent for info in infos}
            stale = [info for info in infos if info.labels.get(UNSYNCED, self._boot) != self._boot]
            doomed = [info.name for info in stale if info.name not in parents]
            for name in doomed:
                snapshotter.remove(name)
            if not doomed:
                self._sound.add(id)
                return

    @staticmethod
    def _find(drivers: Drivers, name: str) -> SnapshotInfo | None:
        try:
            info = drivers.snapshotter.stat(name)
        except NotFound:
            return None
        return info if info.kind == "committed" else None


__all__ = ["PREFIX", "UNPACK", "UNSYNCED", "Unpacker"]
