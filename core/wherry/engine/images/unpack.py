"""Turns an image's layers into committed snapshots, each named by its chain-id, whoever the snapshotter is."""

from __future__ import annotations

import contextvars
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

from attrs import frozen

from wherry.api import (
    AlreadyExists,
    ApartLayer,
    Descriptor,
    Digest,
    FailedPrecondition,
    InUse,
    Invalid,
    Mount,
    NotFound,
    Progress,
    SnapshotInfo,
    SnapshotOptions,
    Unavailable,
)
from wherry.engine.images.content import Content
from wherry.engine.images.incoming import IncomingLayers, PartialBlob
from wherry.engine.images.writeback import WriteBack
from wherry.engine.state.locks import KeyedLocks

if TYPE_CHECKING:
    from wherry.api import Workers
    from wherry.engine.state.leases import Lease
    from wherry.kernel import Drivers, Kernel

#: Label of a snapshot that takes a layer; the key begins with the same word.
UNPACK = "wherry.unpack"
PREFIX = "unpack-"
#: Label of a committed snapshot whose files may not be on disk yet: the word of its ``WriteBack``.
UNSYNCED = "wherry.unsynced"
_PATIENCE = 60.0  # seconds for a collector to end what it has begun
_PAUSE = 0.02
Report = Callable[[Progress], None]
T = TypeVar("T")


class Unpacker:
    """Layers are committed as they come; one syncfs(2) for all of them ends the work. Until then they say by a label that only
    this engine can vouch for them, so what a crash left of an image that was never ready goes before the first use."""

    def __init__(self, kernel: Kernel, workers: Workers, hold: Callable[[Lease, str], None]) -> None:
        self._kernel = kernel
        self._workers = workers
        self._hold = hold
        self._locks = KeyedLocks()
        self._disks: dict[str, WriteBack] = {}
        #: As many workers may read along with a fetch; a further layer is unpacked when it is here.
        self._along = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._working: set[str] = set()  # keys of this engine's unfinished layers
        self._sound: set[str] = set()  # snapshotters without remains of others and of errors

    def unpack(
        self, content: Content, drivers: Drivers, lease: Lease, report: Report, arrivals: IncomingLayers | None = None,
    ) -> str:  # fmt: skip
        """The chain-id of the whole, unpacked in drivers' snapshotter. Callers for the same chain wait for the first.

        arrivals: the layers that are still being fetched; they are read while they come, and are nothing before they have
        come whole. Invalid when a layer's diff-id is not
        the one that the config names; OSError when the disk took no more, or lost what was written.
        """
        chain = content.config.chain_ids()
        if not chain:
            return ""
        job = _Job(content, drivers, lease, report, arrivals or IncomingLayers(), drivers.ids["snapshotter"], chain)
        self.clear(job)
        for name in chain:
            self._hold(lease, f"snapshot/{job.id}/{name}")
        top = self.find(job, chain[-1])
        if top is not None and UNSYNCED not in top.labels:
            return chain[-1]
        start = max((number for number, name in enumerate(chain) if self.find(job, name)), default=-1) + 1
        missing = range(start, len(chain))
        can = self._kernel.capabilities("snapshotter", job.id).provides
        if "rebase" in can and "apply" not in can and len(missing) > 1:
            self._side_by_side(job, missing, "user.overlay." if "userxattr" in can else "trusted.overlay.")
        else:
            for number in missing:
                with self._locks.hold((job.id, chain[number])):
                    if not self.find(job, chain[number]):
                        self._layer(job, number)
        self._sync(job)
        return chain[-1]

    def close(self) -> None:
        """Lets go of the disks; nothing is unpacked any more."""
        for disk in self._disks.values():
            disk.close()

    # one layer

    def _layer(self, job: _Job, number: int) -> None:
        """Over its parents, which are there."""
        name, layer = job.chain[number], job.content.manifest.layers[number]
        parent = job.chain[number - 1] if number else ""
        if "apply" in self._kernel.capabilities("snapshotter", job.id).provides:
            job.arrivals.landed(layer.digest)
            begun = self._disks[job.id].word
            key, _mounts = self._prepare(job, name, parent)
            try:
                with job.drivers.store.open(layer.digest) as stream:
                    job.check(number, job.drivers.snapshotter.apply(key, layer, stream))
                self._commit(job, name, key, begun, later=False)
            finally:
                self._let_go(job, key)
        else:
            with self._tapped(job, layer.digest) as tap, ExitStack() as undo:
                made = self._worked(job, number, parent, tap, undo, self._workers.unpack)
                job.check(number, made.found)
                self._commit(job, name, made.key, made.begun, later=made.later)
        job.report(Progress(layer.digest, "done", layer.size, layer.size))

    @contextmanager
    def _tapped(self, job: _Job, digest: str) -> Iterator[PartialBlob | None]:
        """The layer while it comes, or None when it is in the store."""
        with ExitStack() as stack:
            if self._along.acquire(blocking=False):
                stack.callback(self._along.release)
                if tap := job.arrivals.tap(digest):
                    stack.callback(tap.close)
                    yield tap
                    return
            stack.close()
            job.arrivals.landed(digest)
            yield None

    def _worked(
        self, job: _Job, number: int, parent: str, tap: PartialBlob | None, undo: ExitStack, unpack: Callable[..., T]
    ) -> _UnpackedLayer[T]:
        """What a worker says of a layer, which is in the store then; its key goes with undo, should it not be committed."""
        name, layer = job.chain[number], job.content.manifest.layers[number]
        if tap is None:
            job.report(Progress(layer.digest, "unpacking", 0, layer.size))
        begun = self._disks[job.id].word
        key, mounts = self._prepare(job, name, parent)
        undo.callback(self._let_go, job, key)
        later = self._is_ours(job.id, mounts)
        if tap is None:
            with job.drivers.store.open(layer.digest) as stream:
                return _UnpackedLayer(key, unpack(mounts, layer, stream, sync=not later), begun, later)
        try:
            found = unpack(mounts, layer, tap.stream, sync=not later, feed=tap.feed)
        except (Invalid, Unavailable):
            job.arrivals.landed(layer.digest)  # what is wrong with the bytes, or with their source, says the fetch
            if tap.whole:
                raise
        else:
            job.arrivals.landed(layer.digest)
            if tap.whole:
                job.report(Progress(layer.digest, "unpacking", layer.size, layer.size))
                return _UnpackedLayer(key, found, begun, later)
        self._let_go(job, key)  # the fetch had to begin anew
        return self._worked(job, number, parent, None, undo, unpack)

    def _prepare(self, job: _Job, name: str, parent: str) -> tuple[str, tuple[Mount, ...]]:
        key = f"{PREFIX}{secrets.token_hex(8)}-{name}"
        self._hold(job.lease, f"snapshot/{job.id}/{key}")
        self._working.add(key)
        try:
            options = SnapshotOptions(
                labels={UNPACK: name}, durable=False, volatile=False
            )  # the sync at the end is for all
            return key, job.drivers.snapshotter.prepare(key, parent, options)
        except BaseException:
            self._working.discard(key)
            raise

    def _commit(self, job: _Job, name: str, key: str, begun: str, *, later: bool) -> None:
        """later: the files are not known to be on disk."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with self._disks[job.id].sound(begun):
                    job.drivers.snapshotter.commit(name, key, {UNSYNCED: begun} if later else {})
                if not later:
                    job.drivers.snapshotter.update(name, {})  # durable, as what was prepared so is not by its commit
                return
            except AlreadyExists:  # of another engine of the same snapshotter, or brought back by a collector
                if self.find(job, name) is None:
                    raise Unavailable(f'snapshot "{name}"', "is in use and can't be made anew", "try again") from None
                return
            except InUse:  # a collector is about to delete the one of before
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def _let_go(self, job: _Job, key: str) -> None:
        """A key that was not committed goes; the other one is a name now."""
        try:
            job.drivers.snapshotter.remove(key)
        finally:
            self._working.discard(key)

    # several

    def _side_by_side(self, job: _Job, missing: range, marks: str) -> None:
        """Each layer is unpacked without its parents, as long as its own bytes say all there is to know, and put over them when they
        are committed. Whoever else wants one of these chains waits: a lower one is never waited for while holding its lock
        and needing a higher one, so two images can't wait for each other."""
        waiters = _Waiters()
        pool = ThreadPoolExecutor(os.cpu_count() or 1, "wherry-unpack")
        tasks = {
            number: pool.submit(
                contextvars.copy_context().run, self._apart, job, number, marks if number else "", waiters
            )
            for number in missing
        }
        try:
            for number, task in tasks.items():
                self._put_over(job, number, task.result())
        except BaseException:
            job.arrivals.stop()
            raise
        finally:
            waiting = waiters.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            for number, task in tasks.items():
                if number not in waiting:
                    self._abandon(task)

    def _apart(self, job: _Job, number: int, marks: str, waiters: _Waiters) -> _ParentlessLayer:
        """Takes the chain's lock, for whoever puts the layer over its parents to give back."""
        name, layer = job.chain[number], job.content.manifest.layers[number]
        with ExitStack() as undo, ExitStack() as here:
            with waiters.wait(number):
                undo.enter_context(self._locks.hold((job.id, name)))
                is_there = self.find(job, name) is not None
                tap = None if is_there else here.enter_context(self._tapped(job, layer.digest))
            if is_there:
                return _ParentlessLayer(undo.pop_all())

            def unpack(mounts: tuple[Mount, ...], layer: Descriptor, stream: BinaryIO, **more: Any) -> ApartLayer:
                return self._workers.unpack_apart(mounts, layer, stream, marks, **more)

            try:
                with ExitStack() as made_here:
                    made = self._worked(job, number, "", tap, made_here, unpack)
                    job.check(number, made.found.diff_id)
                    undo.push(made_here.pop_all())
            except FailedPrecondition:
                return _ParentlessLayer(undo.pop_all(), parents=True)
            return _ParentlessLayer(undo.pop_all(), made)

    def _put_over(self, job: _Job, number: int, apart: _ParentlessLayer) -> None:
        name, layer = job.chain[number], job.content.manifest.layers[number]
        with apart.undo:
            if apart.parents:
                if not self.find(job, name):
                    self._layer(job, number)
            elif (made := apart.made) is not None:
                if number:
                    job.drivers.snapshotter.rebase(made.key, job.chain[number - 1], made.found)
                self._commit(job, name, made.key, made.begun, later=made.later)
                job.report(Progress(layer.digest, "done", layer.size, layer.size))

    @staticmethod
    def _abandon(task: Future[_ParentlessLayer]) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().undo.close()

    # what is on disk

    def _directory(self, id: str) -> Path:
        return self._kernel.root / "snapshotter" / id

    def _is_ours(self, id: str, mounts: tuple[Mount, ...]) -> bool:
        """Whether the files go below the driver's own directory, so that a sync there takes them all."""
        below = f"{self._directory(id)}/"
        for option in mounts[0].options:
            if option.startswith("upperdir="):
                return option.startswith(f"upperdir={below}")
        return mounts[0].type == "bind" and mounts[0].source.startswith(below)

    def _sync(self, job: _Job) -> None:
        """Puts on disk what is not there yet, and says so of all at once: one that says it stands on ones that do."""
        with self._locks.hold((job.id, "sync")):
            waiting = []
            for name in job.chain:
                info = self.find(job, name)
                if info is None:
                    raise OSError(errno.EIO, f"the file system lost writes, and the layer {name} with them")
                if UNSYNCED in info.labels:
                    waiting.append(name)
            if not waiting:
                return
            try:
                self._disks[job.id].sync()
            except OSError:
                self._sound.discard(job.id)
                raise
            job.drivers.snapshotter.relabel(waiting, {UNSYNCED: None})

    def clear(self, job: _Job) -> None:
        """Before the first use, and after an error: removes what others left unfinished, what nobody can vouch for, and what stands
        on it, children first. Nothing was ever started from it. One caller at a time, for what is gone may be made anew."""
        with self._locks.hold((job.id, "clear")):
            if job.id not in self._disks:
                self._disks[job.id] = WriteBack(self._directory(job.id))
            while job.id not in self._sound:
                infos = {info.name: info for info in job.drivers.snapshotter.walk()}
                rest = {name for name, info in infos.items() if self._is_rest(job.id, info)}
                while more := {
                    name
                    for name, info in infos.items()
                    if info.parent in rest and UNSYNCED in info.labels and name not in rest
                }:
                    rest |= more
                parents = {info.parent for info in infos.values()}
                doomed = rest - parents
                for name in doomed:
                    job.drivers.snapshotter.remove(name)
                if not rest:
                    self._sound.add(job.id)
                elif not doomed:
                    return  # below layers that are being unpacked, which fail; the next caller finds them free

    def _is_rest(self, id: str, info: SnapshotInfo) -> bool:
        word = self._disks[id].word
        if info.kind == "committed":
            return info.labels.get(UNSYNCED, word) != word
        return UNPACK in info.labels and info.name not in self._working

    def find(self, job: _Job, name: str) -> SnapshotInfo | None:
        """A layer that may be built on."""
        try:
            info = job.drivers.snapshotter.stat(name)
        except NotFound:
            return None
        return info if info.kind == "committed" and not self._is_rest(job.id, info) else None


class _Waiters:
    """Which layers still wait, for their bytes or for somebody who unpacks the same: an error elsewhere need not wait for those."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        self._over = False

    @contextmanager
    def wait(self, number: int) -> Iterator[None]:
        """The block waits and does nothing else. CancelledError before and after it when all is over."""
        with self._lock:
            if self._over:
                raise CancelledError
            self._waiting.add(number)
        try:
            yield
        finally:
            with self._lock:
                self._waiting.discard(number)
                over = self._over
        if over:
            raise CancelledError

    def stop(self) -> set[int]:
        """Who waits, and will do nothing any more."""
        with self._lock:
            self._over = True
            return set(self._waiting)


@frozen
class _Job:
    """One image into one snapshotter."""

    content: Content
    drivers: Drivers
    lease: Lease
    report: Report
    arrivals: IncomingLayers
    id: str
    chain: Sequence[str]

    def check(self, number: int, found: Digest) -> None:
        wanted = self.content.config.diff_ids[number]
        if found != wanted:
            digest = self.content.manifest.layers[number].digest
            raise Invalid(f'layer "{digest}"', f"unpacks to the diff-id {found}, the config says {wanted}")


@frozen
class _UnpackedLayer(Generic[T]):
    """A layer in an active snapshot. found: what the worker says; begun: the word of its disk before the first byte; later: it is
    not known to be on disk."""

    key: str
    found: T
    begun: str
    later: bool


@frozen
class _ParentlessLayer:
    """A layer without its parents: undo gives back the lock, and removes the key where it was not committed. made None:
    there is nothing to do any more, or with parents, it has to be done over them."""

    undo: ExitStack
    made: _UnpackedLayer[ApartLayer] | None = None
    parents: bool = False


__all__ = ["PREFIX", "UNPACK", "UNSYNCED", "Unpacker"]
