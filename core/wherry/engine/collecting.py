"""Garbage collection of blobs and snapshots: what no image, lease, container or plugin leads to may go.

Blobs go in three steps. What seems to be needed by nobody is marked, and counts as absent; then names, leases and containers are
looked at again, and what they lead to by now is unmarked; the rest is swept. Whoever works on images leases a thing before asking
whether it exists, under the gate that the first two steps hold: so it is either found leased here, or absent when it is asked
for, never marked for a moment only. Snapshots are removed one by one, each under the gate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from wherry.api import (
    BlobInfo,
    Descriptor,
    Digest,
    Error,
    GcReport,
    InUse,
    Invalid,
    NotFound,
    SnapshotInfo,
    Snapshotter,
    Store,
)
from wherry.engine.content import Content, Documents
from wherry.engine.unpacking import PREFIX
from wherry.spec.distribution import MANIFESTS, Manifest

if TYPE_CHECKING:
    from wherry.engine.leases import Leases
    from wherry.kernel import Kernel


class Collector:
    """live answers what containers and plugins hold, written as in Context.hold."""

    def __init__(
        self, kernel: Kernel, leases: Leases, documents: Documents, gate: threading.Lock,
        live: Callable[[], Collection[str]],
    ) -> None:  # fmt: skip
        self._kernel = kernel
        self._leases = leases
        self._documents = documents
        self._gate = gate
        self._live = live
        self._one = threading.Lock()  # a sweep takes all that is marked, so no two run at once
        #: Counts the names that were given or moved; to be raised under the gate.
        self.named = 0

    def collect(self) -> GcReport:
        """One run over every store and snapshotter that this engine can use."""
        blobs: list[str] = []
        snapshots: list[str] = []
        freed = 0
        for store in self._stores():
            keep = self._reachable(store)
            gone = self._delete(store, [info.digest for info in list(store.walk()) if info.digest not in keep])
            blobs += [info.digest for info in gone]
            freed += sum(info.size for info in gone) + self._abandoned(store)
        for id, snapshotter in self._snapshotters():
            snapshots += self._sweep(id, snapshotter)
            freed += snapshotter.cleanup()
        return GcReport(tuple(blobs), tuple(snapshots), freed)

    def drop(self, store: Store, target: Descriptor) -> list[str]:
        """What only this image had, after its last name went: its id first, then its layers, the topmost first."""
        try:
            contents = self._contents(store, target)
        except (NotFound, Invalid):
            contents = []
        mine = dict.fromkeys(item.digest for item in self._documents.references(store, target))
        keep = self._reachable(store)
        chains = [content.config.chain_ids() for content in contents]
        gone = {info.digest for info in self._delete(store, [digest for digest in mine if digest not in keep])}
        configs = [content.manifest.config.digest for content in contents]
        layers = [layer.digest for content in contents for layer in reversed(content.manifest.layers)]
        wanted = _Wanted(self)
        for id, snapshotter in self._snapshotters():
            for chain in chains:
                for name in reversed(chain):
                    self._remove(id, snapshotter, name, wanted)
        shown = dict.fromkeys([*configs, target.digest, *layers])
        return [digest for digest in shown if digest in gone]

    # what is kept

    def _reachable(self, store: Store) -> set[str]:
        held = {*self._live(), *self._leases.resources()}
        keep = {resource.removeprefix("blob/") for resource in held if resource.startswith("blob/")}
        targets = [image.target for image in store.list()]
        known = {target.digest for target in targets}
        for digest in keep - known:  # of a container whose image has no name any more, or of work under way
            targets += self._documents.unnamed(store, digest)
        for target in targets:
            keep.update(item.digest for item in self._documents.references(store, target))
        return keep

    def chains(self) -> set[str]:
        """Chain-ids of all images in all stores; a layer in common is a chain in common."""
        names: set[str] = set()
        for store in self._stores():
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

    def _delete(self, store: Store, doomed: Collection[Digest]) -> tuple[BlobInfo, ...]:
        """What of it really went. A document that is marked can't be read: what it leads to comes back one round after it."""
        if not doomed:
            return ()
        with self._one:
            left = set(doomed)
            with self._gate:
                store.mark(doomed)
                while back := left & self._reachable(store):
                    store.unmark(tuple(back))
                    left -= back
            gone = store.sweep()
        for info in gone:
            self._documents.forget(info.digest)
        return gone

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

    def _sweep(self, id: str, snapshotter: Snapshotter) -> list[str]:
        """Children before parents, until a round removes nothing: a parent is in use while it has a child."""
        gone: list[str] = []
        wanted, live = _Wanted(self), self._live()
        while True:
            infos = list(snapshotter.walk())
            parents = {info.parent for info in infos}
            doomed = [
                info
                for info in infos
                if info.name not in parents and self._is_ours(info) and f"snapshot/{id}/{info.name}" not in live
            ]
            removed = [info.name for info in doomed if self._remove(id, snapshotter, info.name, wanted)]
            if not removed:
                return gone
            gone += [f"{id}/{name}" for name in removed]

    @staticmethod
    def _is_ours(info: SnapshotInfo) -> bool:
        """Layers of images, whole or in the making. Containers' snapshots are their containers' business."""
        return info.name.startswith("sha256:" if info.kind == "committed" else PREFIX)

    def _remove(self, id: str, snapshotter: Snapshotter, name: str, wanted: _Wanted) -> bool:
        with self._gate:
            if f"snapshot/{id}/{name}" in self._leases.resources() or name in wanted.now():
                return False  # a container's parent is in use without a lease: it has a child
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


class _Wanted:
    """The chain-ids of all images, worked out anew when a name was given since: to be asked under the gate."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._named = -1
        self._names: Collection[str] = ()

    def now(self) -> Collection[str]:
        if self._named != self._collector.named:
            self._named = self._collector.named
            self._names = self._collector.chains()
        return self._names


__all__ = ["Collector"]
