"""The store kind: image storage, that is blobs by digest and references by name.

Modelled on containerd's core/content and core/images. A worked example, the write of one blob:

    ingest = store.ingest("layer-" + digest, expected=descriptor)   # AlreadyExists: nothing to do
    stream.seek(ingest.offset)                                      # what an earlier, broken-off write left
    while chunk := stream.read(1 << 20):
        ingest.write(chunk)
    ingest.commit(descriptor.size, descriptor.digest, {})

Garbage collection deletes in two steps, so that it need not stop the rest of the engine while it decides:

    store.mark(doomed)                      # absent for everybody from here on
    store.unmark(leased_meanwhile)          # whoever leased one before it was marked may have seen it
    store.sweep()                           # only now bytes go
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import BinaryIO, Protocol

from attrs import frozen

from wherry.interfaces.common import Descriptor, Digest, Labels


@frozen
class BlobInfo:
    """One blob: size in bytes, created in ns since the epoch."""

    digest: Digest
    size: int
    created: int
    labels: Labels


@frozen
class Image:
    """A reference. name is a full one, "docker.io/library/busybox:latest"; updated is in ns since the epoch."""

    name: str
    target: Descriptor
    labels: Labels
    updated: int


class Ingest(Protocol):
    """One resumable write, kept across restarts until commit or abort. One writer a ref: a second raises InUse.

    offset: bytes already written; an ingest opened again starts there.
    """

    ref: str
    offset: int

    def write(self, data: bytes | memoryview, /) -> int: ...
    def reader(self) -> BinaryIO:
        """A stream with fileno() of what was written from the beginning on, and of what will be: a layer is unpacked while it
        comes. It stays good when the write ends, however that is, but for a truncate."""
        ...

    def truncate(self) -> None:
        """Throws away what was written; offset is 0 again."""
        ...

    def commit(self, size: int | None, digest: Digest, labels: Labels) -> BlobInfo:
        """Makes the blob visible and durable, also one that is marked. Invalid when size or digest do not match; then the blob
        is not visible."""
        ...

    def close(self) -> None:
        """Ends this writer; the partial data is kept."""
        ...


class Store(Protocol):
    """Blobs and references. abort, delete and untag succeed when the thing is gone; the others raise NotFound."""

    def info(self, digest: Digest) -> BlobInfo: ...
    def open(self, digest: Digest) -> BinaryIO:
        """A seekable stream with fileno()."""
        ...

    def ingest(self, ref: str, expected: Descriptor | None = None) -> Ingest:
        """Opens or resumes a write. AlreadyExists if the expected blob is there; InUse while another writer has the ref, or the
        expected blob is marked: it can be written again when it is gone."""
        ...

    def abort(self, ref: str) -> None:
        """Throws a write away. InUse while a writer has the ref."""
        ...

    def ingests(self) -> Iterator[tuple[str, int]]:
        """(ref, offset) of each write that is neither committed nor aborted."""
        ...

    def label(self, digest: Digest, labels: Mapping[str, str | None]) -> BlobInfo:
        """Sets the labels given; None removes one."""
        ...

    def delete(self, digest: Digest) -> None: ...
    def mark(self, digests: Collection[Digest]) -> None:
        """In one transaction: these blobs count as absent, until ``unmark``, ``sweep`` or a commit of the same bytes. What is
        absent is passed over. A mark that a restart finds is taken away where the bytes are there still."""
        ...

    def unmark(self, digests: Collection[Digest]) -> None:
        """Takes marks away; blobs without one, and blobs that are gone, are passed over."""
        ...

    def sweep(self) -> tuple[BlobInfo, ...]:
        """Deletes what is marked; what went."""
        ...

    def walk(self) -> Iterator[BlobInfo]: ...
    def resolve(self, name: str) -> Image: ...
    def tag(self, name: str, target: Descriptor, labels: Labels, *, expected: Digest | None = None) -> Image:
        """Points name at target. With expected (compare-and-swap), FailedPrecondition when it points elsewhere now."""
        ...

    def untag(self, name: str, *, expected: Digest | None = None) -> None: ...
    def list(self, prefix: str = "") -> Iterator[Image]: ...
