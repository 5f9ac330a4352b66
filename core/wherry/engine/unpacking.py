"""Turns an image's layers into committed snapshots, each named by its chain-id, whoever the snapshotter is."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from wherry.api import AlreadyExists, Descriptor, Digest, Invalid, NotFound, Progress, SnapshotOptions
from wherry.engine.content import Content
from wherry.engine.keyed import KeyedLocks

if TYPE_CHECKING:
    from wherry.api import Workers
    from wherry.engine.leases import Lease
    from wherry.kernel import Drivers, Kernel

#: Label of a snapshot that takes a layer; the key begins with the same word.
UNPACK = "wherry.unpack"
PREFIX = "unpack-"


class Unpacker:
    def __init__(self, kernel: Kernel, workers: Workers, hold: Callable[[Lease, str], None]) -> None:
        self._kernel = kernel
        self._workers = workers
        self._hold = hold
        self._locks = KeyedLocks()

    def unpack(self, content: Content, drivers: Drivers, lease: Lease, report: Callable[[Progress], None]) -> str:
        """The chain-id of the whole, unpacked in drivers' snapshotter. Callers for the same chain wait for the first.

        Invalid when a layer's diff-id is not the one that the config names.
        """
        chain = content.config.chain_ids()
        if not chain:
            return ""
        id = drivers.ids["snapshotter"]
        for name in chain:
            self._hold(lease, f"snapshot/{id}/{name}")
        if self._exists(drivers, chain[-1]):
            return chain[-1]
        start = max((number for number, name in enumerate(chain) if self._exists(drivers, name)), default=-1) + 1
        for number in range(start, len(chain)):
            parent = chain[number - 1] if number else ""
            with self._locks.hold((id, chain[number])):
                if not self._exists(drivers, chain[number]):
                    layer, diff_id = content.manifest.layers[number], content.config.diff_ids[number]
                    report(Progress(layer.digest, "unpacking", 0, layer.size))
                    self._layer(drivers, chain[number], parent, layer, diff_id, lease)
                    report(Progress(layer.digest, "done", layer.size, layer.size))
        return chain[-1]

    def _layer(
        self, drivers: Drivers, name: str, parent: str, layer: Descriptor, diff_id: Digest, lease: Lease
    ) -> None:
        snapshotter, id = drivers.snapshotter, drivers.ids["snapshotter"]
        key = f"{PREFIX}{secrets.token_hex(8)}-{name}"
        self._hold(lease, f"snapshot/{id}/{key}")
        mounts = snapshotter.prepare(key, parent, SnapshotOptions(labels={UNPACK: name}))
        try:
            with drivers.store.open(layer.digest) as stream:
                if "apply" in self._kernel.capabilities("snapshotter", id).provides:
                    found = snapshotter.apply(key, layer, stream)
                else:
                    found = self._workers.unpack(mounts, layer, stream)
            if found != diff_id:
                raise Invalid(f'layer "{layer.digest}"', f"unpacks to the diff-id {found}, the config says {diff_id}")
            snapshotter.commit(name, key, {})
        except AlreadyExists:  # another engine's client of the same snapshotter was quicker
            snapshotter.remove(key)
        except BaseException:
            snapshotter.remove(key)
            raise

    @staticmethod
    def _exists(drivers: Drivers, name: str) -> bool:
        try:
            return drivers.snapshotter.stat(name).kind == "committed"
        except NotFound:
            return False


__all__ = ["PREFIX", "UNPACK", "Unpacker"]
