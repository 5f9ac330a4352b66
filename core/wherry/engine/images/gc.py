"""Garbage collection of blobs and snapshots: what no image, lease, container or plugin leads to may go.

First names, leases and containers are looked at, while all other work goes on; what is leased or named from then on is taken down.
Then, under the gate by which work takes leases and gives names, what nobody needs or took since is marked, and counts as absent.
What a driver, which knows no gate, leased meanwhile is unmarked. The rest is swept, which stops nobody. Whoever works on images
leases a thing before asking whether it exists: so it is either found leased here, or absent when it is asked for.
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
from wherry.engine.images.content import Content, Documents
from wherry.engine.images.unpack import PREFIX
from wherry.engine.state.pacing import paced
from wherry.spec.distribution import MANIFESTS, Manifest

if TYPE_CHECKING:
    from wherry.engine.state.leases import Leases, LeaseWatch
    from wherry.kernel import Kernel


class GarbageCollector:
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
        self._named: list[list[tuple[Store, Descriptor]]] = []

    def named(self, store: Store, target: Descriptor) -> None:
        """A name was given, under the gate."""
        self._leases.tell(f"blob/{target.digest}")
        for names in self._named:
            names.append((store, target))

    def collect(self) -> GcReport:
        """One run over every store and snapshotter that this engine can use."""
        blobs: list[str] = []
        snapshots: list[str] = []
        freed = 0
        for store in self._stores():
            with self._leases.watch() as seen:
                keep = self._reachable(store)
                gone = self._delete(
                    store, [info.digest for info in paced(store.walk()) if info.digest not in keep], seen
                )
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
        with self._leases.watch() as seen:
            keep = self._reachable(store)
            gone = {info.digest for info in self._delete(store, [name for name in mine if name not in keep], seen)}
        configs = [content.manifest.config.digest for content in contents]
        layers = [layer.digest for content in contents for layer in reversed(content.manifest.layers)]
        names = {name for content in contents for name in content.config.chain_ids()}
        for id, snapshotter in self._snapshotters():
            self._sweep(id, snapshotter, names)
        shown = dict.fromkeys([*configs, target.digest, *layers])
        return [digest for digest in shown if digest in gone]

    # what is kept

    def _reachable(self, store: Store) -> set[str]:
        """All that names, leases and containers lead to at this moment."""
        keep = self._closure(store, {*self._live(), *self._leases.resources()})
        for image in paced(store.list()):
            keep.update(item.digest for item in self._documents.references(store, image.target))
        return keep

    def _closure(self, store: Store, resources: Collection[str]) -> set[str]:
        """Digests of the blobs among resources, and of those that they lead to."""
        keep = {resource.removeprefix("blob/") for resource in resources if resource.startswith("blob/")}
        for digest in list(keep):
            for target in self._documents.unnamed(store, digest):
                keep.update(item.digest for item in self._documents.references(store, target))
        return keep

    def _chains(self, named: Iterable[tuple[Store, Descriptor]]) -> set[str]:
        """Chain-ids of images; a layer in common is a chain in common."""
        names: set[str] = set()
        for store, target in named:
            try:
                for content in self._contents(store, target):
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

    def _delete(self, store: Store, doomed: Collection[Digest], seen: LeaseWatch) -> tuple[BlobInfo, ...]:
        """Of what nobody needed, what really went; seen: what is in use since."""
        if not doomed:
            return ()
        with self._one:
            with self._gate:
                left = set(doomed) - self._closure(store, seen.now())
                store.mark(tuple(left))
                # A document that is marked can't be read: what it leads to comes back one round after it.
                while back := left & self._closure(store, seen.now()):
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
        prefix = f"snapshot/{id}/"
        named: list[tuple[Store, Descriptor]] = []
        with self._leases.watch() as seen, self._one:
            with self._gate:
                self._named.append(named)
            try:
                keep = self._chains((store, image.target) for store in self._stores() for image in paced(store.list()))
                held = {*self._live(), *self._leases.resources()}
                doomed = [
                    info.name
                    for info in paced(snapshotter.walk())
                    if _is_ours(info)
                    and (names is None or info.name in names)
                    and info.name not in keep
                    and prefix + info.name not in held
                ]
                if not doomed:
                    return ()
                with self._gate:
                    # A container's parent needs no lease: it has a child.
                    keep, since = self._chains(named), seen.now()
                    marked = snapshotter.mark(
                        [name for name in doomed if name not in keep and prefix + name not in since]
                    )
                    since = seen.now()
                    snapshotter.unmark([name for name in marked if prefix + name in since])
            finally:
                with self._gate:
                    self._named = [other for other in self._named if other is not named]
            return snapshotter.sweep()

    # where

    def _stores(self) -> Iterable[Store]:
        return [store for _id, store in present(self._kernel, "store")]

    def _snapshotters(self) -> list[tuple[str, Any]]:
        return present(self._kernel, "snapshotter")


def present(kernel: Kernel, kind: Kind) -> list[tuple[str, Any]]:
    """Drivers that can run here and have state on disk, or are in use already, by their ids."""
    result = []
    for id in kernel.usable(kind, used=True):
        try:
            result.append((id, kernel.driver(kind, id)))
        except (Error, OSError):
            continue
    return result


def _is_ours(info: SnapshotInfo) -> bool:
    """Layers of images, whole or in the making. Containers' snapshots are their containers' business."""
    return info.name.startswith("sha256:" if info.kind == "committed" else PREFIX)


__all__ = ["GarbageCollector", "present"]
