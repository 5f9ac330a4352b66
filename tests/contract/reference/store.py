"""Blobs as files named by number, all else in one JSON document."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from contract.reference.state import NoConfig, State
from wherry.api import (
    AlreadyExists,
    BlobInfo,
    Context,
    Descriptor,
    Digest,
    FailedPrecondition,
    Image,
    InUse,
    Invalid,
    Labels,
    NotFound,
    Registration,
)


class FileIngest:
    def __init__(self, store: FileStore, ref: str, path: Path) -> None:
        self.store = store
        self.ref = ref
        self.path = path
        self.offset = path.stat().st_size

    def write(self, data: bytes | memoryview, /) -> int:
        with self.path.open("ab") as file:
            written = file.write(data)
        self.offset += written
        return written

    def reader(self) -> BinaryIO:
        return self.path.open("rb")

    def truncate(self) -> None:
        self.path.write_bytes(b"")
        self.offset = 0

    def verify(self, data: bytes, size: int | None, digest: Digest) -> None:
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            raise Invalid(f"blob {digest}", f"the bytes have the digest {found}")
        if size is not None and size != len(data):
            raise Invalid(f"blob {digest}", f"{len(data)} bytes instead of {size}")

    def commit(self, size: int | None, digest: Digest, labels: Labels) -> BlobInfo:
        data = self.path.read_bytes()
        self.verify(data, size, digest)
        return self.store.publish(self, data, digest, labels)

    def close(self) -> None:
        self.store.release(self.ref)


class FileStore:
    ingest_class = FileIngest

    def __init__(self, config: NoConfig, context: Context) -> None:
        self.context = context
        self.state = State(context.root)
        self.writers: set[str] = set()
        self.marks: set[str] = set()

    def file(self, kind: str, number: int) -> Path:
        return self.context.root / f"{kind}-{number}"

    def number(self) -> int:
        self.state.tables["count"] = int(self.state.tables.get("count", 0)) + 1
        return int(self.state.tables["count"])

    # blobs

    def blob(self, digest: Digest) -> dict[str, Any]:
        if digest in self.marks or digest not in self.state.table("blobs"):
            raise NotFound(f"blob {digest}", "not in the store")
        return dict(self.state.table("blobs")[digest])

    def info(self, digest: Digest) -> BlobInfo:
        blob = self.blob(digest)
        return BlobInfo(digest, blob["size"], blob["created"], dict(blob["labels"]))

    def open(self, digest: Digest) -> BinaryIO:
        return self.file("blob", self.blob(digest)["number"]).open("rb")

    def label(self, digest: Digest, labels: Mapping[str, str | None]) -> BlobInfo:
        with self.state.change():
            self.blob(digest)
            kept = {**self.state.table("blobs")[digest]["labels"], **labels}
            self.state.table("blobs")[digest]["labels"] = {key: text for key, text in kept.items() if text is not None}
            return self.info(digest)

    def delete(self, digest: Digest) -> None:
        with self.state.change():
            self.marks.discard(digest)
            blob = self.state.table("blobs").pop(digest, None)
            if blob is not None:
                self.file("blob", blob["number"]).unlink()

    def mark(self, digests: Collection[Digest]) -> None:
        with self.state.change():
            self.marks.update(digest for digest in digests if digest in self.state.table("blobs"))

    def unmark(self, digests: Collection[Digest]) -> None:
        with self.state.change():
            self.marks.difference_update(digests)

    def sweep(self) -> tuple[BlobInfo, ...]:
        with self.state.change():
            doomed, self.marks = sorted(self.marks), set()
            gone = tuple(self.info(Digest(digest)) for digest in doomed)
            for info in gone:
                self.delete(info.digest)
            return gone

    def walk(self) -> Iterator[BlobInfo]:
        with self.state.change():
            present = [digest for digest in self.state.table("blobs") if digest not in self.marks]
            return iter([self.info(Digest(digest)) for digest in present])

    # writes

    def ingest(self, ref: str, expected: Descriptor | None = None) -> FileIngest:
        with self.state.change():
            if expected is not None and expected.digest in self.marks:
                raise InUse(f"blob {expected.digest}", "about to be deleted")
            if expected is not None and expected.digest in self.state.table("blobs"):
                raise AlreadyExists(f"blob {expected.digest}", "in the store already")
            if ref in self.writers:
                raise InUse(f"ingest {ref!r}", "another writer has it")
            writes = self.state.table("writes")
            if ref not in writes:
                writes[ref] = self.number()
                self.file("write", writes[ref]).touch()
            self.writers.add(ref)
            return self.ingest_class(self, ref, self.file("write", writes[ref]))

    def release(self, ref: str) -> None:
        self.writers.discard(ref)

    def publish(self, ingest: FileIngest, data: bytes, digest: Digest, labels: Labels) -> BlobInfo:
        with self.state.change():
            blobs = self.state.table("blobs")
            if digest not in blobs:
                number = self.number()
                self.file("blob", number).write_bytes(data)
                created = time.time_ns()
                blobs[digest] = {"number": number, "size": len(data), "created": created, "labels": dict(labels)}
            self.marks.discard(digest)
            self.release(ingest.ref)
            self.abort(ingest.ref)
            return self.info(digest)

    def abort(self, ref: str) -> None:
        with self.state.change():
            if ref in self.writers:
                raise InUse(f"ingest {ref!r}", "another writer has it")
            number = self.state.table("writes").pop(ref, None)
            if number is not None:
                self.file("write", number).unlink()

    def ingests(self) -> Iterator[tuple[str, int]]:
        writes = self.state.table("writes").items()
        return iter([(ref, self.file("write", number).stat().st_size) for ref, number in writes])

    # references

    def resolve(self, name: str) -> Image:
        try:
            row = self.state.table("images")[name]
        except KeyError:
            raise NotFound(f"image {name!r}", "not in the store") from None
        return Image(name, Descriptor(**row["target"]), dict(row["labels"]), row["updated"])

    def compare(self, name: str, expected: Digest | None) -> None:
        row = self.state.table("images").get(name)
        if expected is not None and row is not None and row["target"]["digest"] != expected:
            raise FailedPrecondition(f"image {name!r}", f"points at {row['target']['digest']}")

    def tag(self, name: str, target: Descriptor, labels: Labels, *, expected: Digest | None = None) -> Image:
        with self.state.change():
            self.compare(name, expected)
            fields = ("media_type", "digest", "size", "platform")
            row = {key: getattr(target, key) for key in fields} | {"annotations": dict(target.annotations)}
            self.state.table("images")[name] = {"target": row, "labels": dict(labels), "updated": time.time_ns()}
            return self.resolve(name)

    def untag(self, name: str, *, expected: Digest | None = None) -> None:
        with self.state.change():
            self.compare(name, expected)
            self.state.table("images").pop(name, None)

    def list(self, prefix: str = "") -> Iterator[Image]:
        return iter([self.resolve(name) for name in self.state.table("images") if name.startswith(prefix)])


def registration(driver: type[FileStore] = FileStore) -> Registration[NoConfig, FileStore]:
    return Registration(id="reference", config=NoConfig, init=driver)
