"""Garbage collection of blobs and snapshots: what no image, lease, container or plugin leads to may go.

Each item is deleted under the gate by which work takes its leases: a thing is leased before anybody asks whether it exists, so
it is either found leased here and kept, or gone before it is asked for. An image's blobs and snapshots are not referenced while
they are being brought in; the lease is what keeps them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from wherry.api import Descriptor, Digest, Error, GcReport, InUse, Invalid, NotFound, SnapshotInfo, Snapshotter, Store
from wherry.engine.content import Content, Documents, bare
from wherry.engine.unpacking import PREFIX
from wherry.spec.distribution import MANIFESTS, Manifest

if TYPE_CHECKING:
    from wherry.engine.leases import Leases
    from wherry.kernel import Kernel


class Collector:
    def __init__(self, kernel: Kernel, leases: Leases, documents: Documents, gate: threading.Lock) -> None:
        self._kernel = kernel
        self._leases = leases
        self._documents = documents
        self._gate = gate

    def collect(self, live: Collection[str]) -> GcReport:
        """One run over every store and snapshotter that this engine can use."""
        live = {*live, *self._kernel.gc_roots()}
        blobs: list[str] = []
        snapshots: list[str] = []
        freed = 0
        wanted: set[str] = set()
        for store in self._stores():
            keep = self._reachable(store, live)
            wanted |= self._chains(store)
            for info in list(store.walk()):
                if info.digest not in keep and self._delete(store, info.digest):
                    blobs.append(info.digest)
                    freed += info.size
            freed += self._abandoned(store)
        for id, snapshotter in self._snapshotters():
            snapshots += self._sweep(id, snapshotter, wanted, live)
            freed += snapshotter.cleanup()
        return GcReport(tuple(blobs), tuple(snapshots), freed)

    def drop(self, store: Store, target: Descriptor, live: Collection[str]) -> list[str]:
        """What only this image had, after its last name went: its id first, then its layers, the topmost first."""
        try:
            contents = self._contents(store, target)
        except (NotFound, Invalid):
            contents = []
        mine = list(dict.fromkeys(item.digest for item in self._documents.references(store, target)))
        keep = self._reachable(store, live)
        chains = [content.config.chain_ids() for content in contents]
        gone = [digest for digest in mine if digest not in keep and self._delete(store, Digest(digest))]
        configs = [content.manifest.config.digest for content in contents]
        layers = [layer.digest for content in contents for layer in reversed(content.manifest.layers)]
        wanted = self._chains(store)
        for id, snapshotter in self._snapshotters():
            for chain in chains:
                for name in reversed(chain):
                    if name not in wanted:
                        self._remove(id, snapshotter, name, live)
        shown = dict.fromkeys([*configs, target.digest, *layers])
        return [digest for digest in shown if digest in gone]

    # what is kept

    def _reachable(self, store: Store, live: Collection[str]) -> set[str]:
        keep = {resource.removeprefix("blob/") for resource in live if resource.startswith("blob/")}
        targets = [image.target for image in store.list()]
        known = {target.digest for target in targets}
        for digest in keep - known:  # a container's image that has no name any more: its config is still read
            targets += self._unnamed(store, digest)
        for target in targets:
            keep.update(item.digest for item in self._documents.references(store, target))
        return keep

    def _unnamed(self, store: Store, digest: str) -> list[Descriptor]:
        try:
            return [bare(store, digest)]
        except (Error, OSError):
            return []

    def _chains(self, store: Store) -> set[str]:
        """Chain-ids of all images; a layer in common is a chain in common."""
        names: set[str] = set()
        for image in store.list():
            try:
                for content in self._contents(store, image.target):
                    names.update(content.config.chain_ids())
            except (NotFound, Invalid):
                continue
        return names

    def _contents(self, store: Store, target: Descriptor) -> list[Content]:
        """The image for each platform that is here."""
        result = []
        for item in self._documents.references(store, target):
            if item.media_type not in MANIFESTS:
                continue
            try:
                if isinstance(self._documents.target(store, item), Manifest):
                    result.append(self._documents.content(store, item, ""))
            except (NotFound, Invalid):
                continue
        return result

    # what goes

    def _delete(self, store: Store, digest: Digest) -> bool:
        with self._gate:
            if f"blob/{digest}" in self._leases.resources():
                return False
            store.delete(digest)
        self._documents.forget(digest)
        return True

    def _abandoned(self, store: Store) -> int:
        """Writes that nobody is about to resume."""
        freed = 0
        for ref, offset in list(store.ingests()):
            with self._gate:
                digest = ref.removeprefix("fetch-")
                if f"blob/{digest}" in self._leases.resources():
                    continue
                try:
                    store.abort(ref)
                except InUse:
                    continue
            freed += offset
        return freed

    def _sweep(self, id: str, snapshotter: Snapshotter, wanted: Collection[str], live: Collection[str]) -> list[str]:
        """Children before parents, until a round removes nothing: a parent is in use while it has a child."""
        gone: list[str] = []
        while True:
            infos = list(snapshotter.walk())
            parents = {info.parent for info in infos}
            doomed = [info for info in infos if info.name not in parents and self._is_ours(info, wanted)]
            removed = [info.name for info in doomed if self._remove(id, snapshotter, info.name, live)]
            if not removed:
                return gone
            gone += [f"{id}/{name}" for name in removed]

    @staticmethod
    def _is_ours(info: SnapshotInfo, wanted: Collection[str]) -> bool:
        """Layers of images, whole or in the making. Containers' snapshots are their containers' business."""
        if info.kind == "committed":
            return info.name.startswith("sha256:") and info.name not in wanted
        return info.name.startswith(PREFIX)

    def _remove(self, id: str, snapshotter: Snapshotter, name: str, live: Collection[str]) -> bool:
        with self._gate:
            resource = f"snapshot/{id}/{name}"
            if resource in live or resource in self._leases.resources():
                return False
            try:
                snapshotter.remove(name)
            except InUse:
                return False
        return True

    # where

    def _stores(self) -> Iterable[Store]:
        return [store for _id, store in self._drivers("store")]

    def _snapshotters(self) -> list[tuple[str, Any]]:
        return self._drivers("snapshotter")

    def _drivers(self, kind: str) -> list[tuple[str, Any]]:
        """Those that can run here and have state on disk, or are in use already."""
        result = []
        for plugin in self._kernel.plugins():
            if plugin.family != kind or plugin.state not in ("ready", "available"):
                continue
            if plugin.state == "available" and not (self._kernel.root / kind / plugin.id).is_dir():
                continue
            try:
                result.append((plugin.id, self._kernel.driver(kind, plugin.id)))
            except (Error, OSError):
                continue
        return result


__all__ = ["Collector"]
