"""Garbage collection of blobs and snapshots: what no image, lease, container or plugin leads to may go.

First names, leases and containers are looked at, while all other work goes on. Then, under the gate by which work takes leases and
gives names, once more if there was any of either since; what is needed by nobody is marked, and counts as absent from then. What
was leased meanwhile, by a driver that knows no gate, is unmarked. The rest is swept, which stops nobody. Whoever works on
images leases a thing before asking whether it exists: so it is either found leased here, or absent when it is asked for.
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
    Kind,
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
            moment = self._moment()
            keep = self._reachable(store)
            gone = self._delete(store, [info.digest for info in list(store.walk()) if info.digest not in keep], moment)
            blobs += [info.digest for info in gone]
            freed += sum(info.size for info in gone) + self._abandoned(store)
        for id, snapshotter in self._snapshotters():
            snapshots += [f"{id}/{name}" for name in self._sweep(id, snapshotter)]
            freed += snapshotter.cleanup()
        return GcReport(tuple(blobs), tuple(snapshots), freed)

    def drop(self, store: Store, target: Descriptor) -> list[str]:
        """What only this image had, after its last name went: its id first, then its layers, the topmost first."""
        try:
            contents = self._contents(store, target)
        except (NotFound, Invalid):
            contents = []
        mine = dict.fromkeys(item.digest for item in self._documents.references(store, target))
        moment = self._moment()
        keep = self._reachable(store)
        chains = [content.config.chain_ids() for content in contents]
        gone = {info.digest for info in self._delete(store, [digest for digest in mine if digest not in keep], moment)}
        configs = [content.manifest.config.digest for content in contents]
        layers = [layer.digest for content in contents for layer in reversed(content.manifest.layers)]
        names = {name for chain in chains for name in chain}
        for id, snapshotter in self._snapshotters():
            self._sweep(id, snapshotter, names)
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

    def _moment(self) -> tuple[int, int]:
        """Stays the same as long as nothing was leased or named."""
        return self.named, self._leases.count

    def _delete(self, store: Store, doomed: Collection[Digest], moment: tuple[int, int]) -> tuple[BlobInfo, ...]:
        """Of what nobody needed at a moment, what really went."""
        if not doomed:
            return ()
        with self._one:
            left = set(doomed)
            with self._gate:
                if moment != (moment := self._moment()):
                    left -= self._reachable(store)
                store.mark(tuple(left))
                if moment != self._moment():
                    # A document that is marked can't be read: what it leads to comes back one round after it.
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

    def _sweep(self, id: str, snapshotter: Snapshotter, names: Collection[str] | None = None) -> tuple[str, ...]:
        """Of the snapshots with these names, or of all, what really went. What has a child that stays is not marked."""
        wanted = _Wanted(self)
        keep = wanted.now()
        live = self._live()
        doomed = [
            info.name
            for info in list(snapshotter.walk())
            if _is_ours(info)
            and (names is None or info.name in names)
            and info.name not in keep
            and f"snapshot/{id}/{info.name}" not in live
        ]
        if not doomed:
            return ()
        with self._one:
            with self._gate:
                keep, held = wanted.now(), self._leased(id)
                # A container's parent needs no lease: it has a child.
                marked = snapshotter.mark([name for name in doomed if name not in keep and name not in held])
                snapshotter.unmark(self._leased(id).intersection(marked))
            return snapshotter.sweep()

    def _leased(self, id: str) -> set[str]:
        prefix = f"snapshot/{id}/"
        return {name.removeprefix(prefix) for name in self._leases.resources() if name.startswith(prefix)}

    # where

    def _stores(self) -> Iterable[Store]:
        return [store for _id, store in present(self._kernel, "store")]

    def _snapshotters(self) -> list[tuple[str, Any]]:
        return present(self._kernel, "snapshotter")


def present(kernel: Kernel, kind: Kind) -> list[tuple[str, Any]]:
    """Drivers that can run here and have state on disk, or are in use already, by their ids."""
    result = []
    for plugin in kernel.plugins():
        if plugin.family != kind or plugin.state not in ("ready", "available"):
            continue
        if plugin.state == "available" and not (kernel.root / kind / plugin.id).is_dir():
            continue
        try:
            result.append((plugin.id, kernel.driver(kind, plugin.id)))
        except (Error, OSError):
            continue
    return result


def _is_ours(info: SnapshotInfo) -> bool:
    """Layers of images, whole or in the making. Containers' snapshots are their containers' business."""
    return info.name.startswith("sha256:" if info.kind == "committed" else PREFIX)


class _Wanted:
    """The chain-ids of all images, worked out anew when a name was given since, as is sure under the gate."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._named = -1
        self._names: Collection[str] = ()

    def now(self) -> Collection[str]:
        if self._named != self._collector.named:
            self._named = self._collector.named
            self._names = self._collector.chains()
        return self._names


__all__ = ["Collector", "present"]
