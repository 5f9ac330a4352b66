"""Brings an image into a store: its documents first, then its layers side by side, all under a lease."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from wherry.api import AlreadyExists, Descriptor, Ingest, InUse, Invalid, Progress, Store, Transport
from wherry.engine.images.content import Content, Documents
from wherry.engine.images.incoming import IncomingLayer, IncomingLayers
from wherry.engine.state.locks import KeyedLocks
from wherry.spec.distribution import Index, choose, host_platform
from wherry.spec.document import DOCUMENT_MAX

if TYPE_CHECKING:
    from wherry.engine.state.leases import Lease

_CHUNK = 1 << 20
_AT_ONCE = 3  # as docker does: more connections make one pull no faster
_WAIT = 0.05
_INDEX_DEPTH = 4
Report = Callable[[Progress], None]


class Fetcher:
    """One transport, one store, one lease. report is told of each step and may raise to end the work."""

    def __init__(
        self, store: Store, transport: Transport, reference: str, documents: Documents, locks: KeyedLocks, *,
        lease: Lease, hold: Callable[[Lease, str], None], report: Report,
    ) -> None:  # fmt: skip
        self._store = store
        self._transport = transport
        self._reference = reference
        self._documents = documents
        self._locks = locks
        self._lease = lease
        self._hold = hold
        self._report = report
        self._over = False

    def documents(self, target: Descriptor, platform: str) -> Content:
        """The documents of the image for one platform, in the store. Refuses what is ill-formed before a layer is fetched."""
        manifest_target = target
        for _depth in range(_INDEX_DEPTH + 1):
            self._document(manifest_target)
            document = self._documents.target(self._store, manifest_target)
            if not isinstance(document, Index):
                break
            manifest_target = choose(document.manifests, platform or host_platform(), f'image "{self._reference}"')
        else:
            raise Invalid(f'image "{target.digest}"', "is an index of indexes without end")
        self._document(document.config)
        return self._documents.content(self._store, target, platform, self._reference)

    @contextmanager
    def layers(self, content: Content) -> Iterator[IncomingLayers]:
        """Fetches the layers, some side by side, the lowest first. Inside, they can be waited for and read while they come;
        all are there when the block is left. A layer that fails, or the block, ends the others at their next piece."""
        layers = {layer.digest: layer for layer in content.manifest.layers}
        arrivals = IncomingLayers(layers)
        with ThreadPoolExecutor(_AT_ONCE, "wherry-fetch") as pool:
            tasks = [
                pool.submit(contextvars.copy_context().run, self._layer, layer, arrivals.of(digest))
                for digest, layer in layers.items()
            ]
            try:
                yield arrivals
                for task in tasks:
                    task.result()
            except BaseException:
                self._over = True
                arrivals.stop()
                for task in tasks:
                    task.cancel()
                raise

    def _layer(self, target: Descriptor, arrival: IncomingLayer) -> None:
        try:
            self._blob(target, arrival)
        except BaseException as error:
            arrival.end(error)
            raise
        arrival.end()

    def _tell(self, progress: Progress) -> None:
        if self._over:
            raise CancelledError
        self._report(progress)

    def _document(self, target: Descriptor) -> None:
        if target.size > DOCUMENT_MAX:
            raise Invalid(
                f'document "{target.digest}"', f"is announced with {target.size} bytes, more than {DOCUMENT_MAX}"
            )
        self._blob(target)

    def _blob(self, target: Descriptor, arrival: IncomingLayer | None = None) -> None:
        self._hold(self._lease, f"blob/{target.digest}")
        with self._locks.hold(("blob", target.digest)):
            while True:
                try:
                    self._ingest(target, arrival)
                    return
                except AlreadyExists:
                    self._tell(Progress(target.digest, "exists", target.size, target.size))
                    return
                except InUse:  # a writer that is not this engine's fetch; it ends or lets go
                    self._tell(Progress(target.digest, "waiting", 0, target.size))
                    time.sleep(_WAIT)

    def _ingest(self, target: Descriptor, arrival: IncomingLayer | None) -> None:
        ref = f"fetch-{target.digest}"
        ingest = self._store.ingest(ref, target)
        try:
            resumed = ingest.offset > 0
            try:
                self._write(ingest, target, arrival)
            except Invalid:
                if not resumed:
                    raise
                # Not the source's fault perhaps: what was resumed may be what a power cut left, zeros for instance.
                if arrival:
                    arrival.restart()
                ingest.truncate()
                self._write(ingest, target, arrival)
        except Invalid:
            ingest.close()
            with suppress(InUse):  # somebody began anew
                self._store.abort(ref)  # nothing to resume: these bytes can't become the blob
            raise
        except BaseException:
            ingest.close()
            raise
        self._tell(Progress(target.digest, "done", target.size, target.size))

    def _write(self, ingest: Ingest, target: Descriptor, arrival: IncomingLayer | None) -> None:
        if ingest.offset > target.size:
            ingest.truncate()
        offset = ingest.offset
        if arrival:
            arrival.begin(ingest)
        self._tell(Progress(target.digest, "fetching", offset, target.size))
        if offset < target.size or not target.size:
            with self._transport.fetch(self._reference, target, offset) as stream:
                while chunk := stream.read(_CHUNK):
                    offset += len(chunk)
                    if offset > target.size:
                        raise Invalid(f'blob "{target.digest}"', f"is longer than the {target.size} bytes announced")
                    ingest.write(chunk)
                    if arrival:
                        arrival.more()
                    self._tell(Progress(target.digest, "fetching", offset, target.size))
        if arrival and offset == target.size:
            arrival.all()
        ingest.commit(target.size, target.digest, {})


__all__ = ["Fetcher", "Report"]
