"""The store itself: rows, blob files and the index.json that follows them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from wherry.api import (
    AlreadyExists,
    BlobInfo,
    Descriptor,
    Digest,
    Error,
    FailedPrecondition,
    Image,
    InUse,
    Invalid,
    Labels,
    NotFound,
)
from wherry.kit.database import Database
from wherry.kit.files import fsync_directory
from wherry.spec.distribution import INDEX
from wherry.spec.document import check_digest
from wherry.spec.layout import LAYOUT, REF_NAME
from wherry_plugins.store.local.ingest import LocalIngest, dump, ingest_file

SCHEMA = """
CREATE TABLE blobs (
    digest   TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    labels   TEXT NOT NULL DEFAULT '{}',
    deleting INTEGER NOT NULL DEFAULT 0   -- marked: counts as absent; the file may be gone
) WITHOUT ROWID;
CREATE TABLE images (
    name        TEXT PRIMARY KEY,
    media_type  TEXT NOT NULL,
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    annotations TEXT NOT NULL DEFAULT '{}',
    platform    TEXT NOT NULL DEFAULT '',
    labels      TEXT NOT NULL DEFAULT '{}',
    updated     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE ingests (ref TEXT PRIMARY KEY, created INTEGER NOT NULL) WITHOUT ROWID;
"""
VERSION = 1
_INDEX_SHARE = 10  # index.json may take a tenth of the time of many tags, no more
_BLOB = "digest, size, created, labels, deleting"
_IMAGE = "name, media_type, digest, size, annotations, platform, labels, updated"


def hex_of(digest: str) -> str:
    """The file name of a digest; Invalid for anything that is none, so that no path is made of unchecked text."""
    return check_digest(digest, "blob").removeprefix("sha256:")


class BlobRow(NamedTuple):
    """A blob's row; deleting: it is marked."""

    info: BlobInfo
    deleting: bool


class LocalStore:
    """Implements ``wherry.api.Store``."""

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self.root = root
        self.fsync = fsync
        self.blobs = root / "blobs" / "sha256"
        self.partial = root / "ingest"
        for directory in (self.blobs, self.partial):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.database = Database(root / "store.db", SCHEMA, VERSION)
        # Guards what a row and its file must agree on: between rename and row, between mark and unlink.
        self.lock = threading.Lock()
        self._index_lock = threading.Lock()
        self._index_timer: threading.Timer | None = None
        self._index_written = self._index_took = 0.0
        layout = root / "oci-layout"
        if not layout.exists():
            whole = layout.with_name("oci-layout.new")  # half of it would stay so
            whole.write_text(json.dumps(LAYOUT))
            whole.replace(layout)
            if fsync:
                for directory in (self.blobs.parent, root, root.parent):
                    fsync_directory(directory)
        self._recover()
        self._write_index()

    # content

    def info(self, digest: Digest) -> BlobInfo:
        row = self.row(digest)
        if row is None or row.deleting:
            raise NotFound(f'blob "{digest}"', "is not in the store")
        return row.info

    def open(self, digest: Digest) -> BinaryIO:
        self.info(digest)
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            self.info(digest)  # it may have gone since
            raise Error(f'blob "{digest}"', "its file is gone", "run wherry doctor") from error

    def ingest(self, ref: str, expected: Descriptor | None = None) -> LocalIngest:
        if not ref or len(ref) > 1024:
            raise Invalid(f'ingest "{ref[:100]}"', "a ref has 1 to 1024 characters")
        if expected is not None:
            row = self.row(expected.digest)
            if row is not None and row.deleting:
                raise InUse(f'blob "{expected.digest}"', "is about to be deleted")
            if row is not None:
                raise AlreadyExists(f'blob "{expected.digest}"', "is in the store already")
        return LocalIngest(self, ref)

    def abort(self, ref: str) -> None:
        claim = LocalIngest.claim(ingest_file(self.partial, ref), ref)
        try:
            with self.database.write() as execute:
                execute("DELETE FROM ingests WHERE ref = ?", (ref,))
            claim.path.unlink(missing_ok=True)  # only now may another writer begin, with a row of its own
        finally:
            claim.release()

    def ingests(self) -> Iterator[tuple[str, int]]:
        for (ref,) in self.database.all("SELECT ref FROM ingests ORDER BY ref"):
            try:
                yield ref, ingest_file(self.partial, ref).stat().st_size
            except FileNotFoundError:
                yield ref, 0

    def label(self, digest: Digest, labels: Mapping[str, str | None]) -> BlobInfo:
        with self.database.write() as execute:
            merged = {**self.info(digest).labels}
            for key, value in labels.items():
                if value is None:
                    merged.pop(key, None)
                else:
                    merged[key] = value
            execute("UPDATE blobs SET labels = ? WHERE digest = ?", (dump(merged), digest))
            return self.info(digest)

    def delete(self, digest: Digest) -> None:
        path = self.path(digest)
        with self.lock:
            self.mark((digest,))
            path.unlink(missing_ok=True)
            with self.database.write(durable=False) as execute:
                execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    def mark(self, digests: Collection[Digest]) -> None:
        self._set_marks(digests, 1)

    def unmark(self, digests: Collection[Digest]) -> None:
        self._set_marks(digests, 0)

    def _set_marks(self, digests: Collection[Digest], value: int) -> None:
        for digest in digests:
            hex_of(digest)
        with self.database.write() as execute:
            for digest in digests:
                execute("UPDATE blobs SET deleting = ? WHERE digest = ?", (value, digest))

    def sweep(self) -> tuple[BlobInfo, ...]:
        gone = []
        for (digest,) in self.database.all("SELECT digest FROM blobs WHERE deleting ORDER BY digest"):
            with self.lock:  # against a commit of the same bytes
                row = self.row(digest)
                if row is None or not row.deleting:
                    continue
                self.path(digest).unlink(missing_ok=True)
                # A power cut may bring the row back, never without its mark.
                with self.database.write(durable=False) as execute:
                    execute("DELETE FROM blobs WHERE digest = ?", (digest,))
            gone.append(row.info)
        return tuple(gone)

    def walk(self) -> Iterator[BlobInfo]:
        rows = self.database.all(f"SELECT {_BLOB} FROM blobs WHERE NOT deleting ORDER BY digest")  # noqa: S608 - constants
        return (_blob(row).info for row in rows)

    # references

    def resolve(self, name: str) -> Image:
        row = self.database.row(f"SELECT {_IMAGE} FROM images WHERE name = ?", (name,))  # noqa: S608 - constants
        if row is None:
            raise NotFound(f'image "{name}"', "no such image")
        return _image(row)

    def tag(self, name: str, target: Descriptor, labels: Labels, *, expected: Digest | None = None) -> Image:
        hex_of(target.digest)
        if not name or len(name) > 1024 or "\0" in name:
            raise Invalid(f'image "{name[:100]}"', "a name has 1 to 1024 characters")
        now = time.time_ns()
        with self.database.write() as execute:
            self._expect(execute, name, expected)
            execute(
                f"INSERT OR REPLACE INTO images ({_IMAGE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
                (
                    name, target.media_type, target.digest, target.size, dump(target.annotations), target.platform,
                    dump(labels), now,
                ),
            )  # fmt: skip
        self._follow()
        return Image(name, target, dict(labels), now)

    def untag(self, name: str, *, expected: Digest | None = None) -> None:
        with self.database.write() as execute:
            if not execute("SELECT 1 FROM images WHERE name = ?", (name,)).fetchall():
                return
            self._expect(execute, name, expected)
            execute("DELETE FROM images WHERE name = ?", (name,))
        self._follow()

    def list(self, prefix: str = "") -> Iterator[Image]:
        rows = self.database.all(
            f"SELECT {_IMAGE} FROM images WHERE substr(name, 1, ?) = ? ORDER BY name",  # noqa: S608 - constants
            (len(prefix), prefix),
        )
        return (_image(row) for row in rows)

    # for the ingest, and for whoever ends the engine

    def row(self, digest: Digest) -> BlobRow | None:
        """What the database has of a blob, be it marked."""
        hex_of(digest)
        row = self.database.row(f"SELECT {_BLOB} FROM blobs WHERE digest = ?", (digest,))  # noqa: S608 - constants
        return None if row is None else _blob(row)

    def path(self, digest: str) -> Path:
        """Where a blob's file is or would be."""
        return self.blobs / hex_of(digest)

    def close(self) -> None:
        self._write_late()
        self.database.close()

    @staticmethod
    def _expect(execute: Any, name: str, expected: Digest | None) -> None:
        if expected is None:
            return
        found = execute("SELECT digest FROM images WHERE name = ?", (name,)).fetchall()
        if not found or found[0][0] != expected:
            now = f"it points at {found[0][0]} now" if found else "it does not exist now"
            raise FailedPrecondition(f'image "{name}"', f"{now}, not at {expected}")

    def _recover(self) -> None:
        """Ends what a crash cut short. A marked blob whose file is there was perhaps leased and named after its mark: only the
        next collection can tell. Files whose row was never written go."""
        with self.database.write() as execute:
            for (digest,) in execute("SELECT digest FROM blobs WHERE deleting").fetchall():
                if not self.path(digest).exists():
                    execute("DELETE FROM blobs WHERE digest = ?", (digest,))
            execute("UPDATE blobs SET deleting = 0 WHERE deleting")
            known = {digest.partition(":")[2] for (digest,) in execute("SELECT digest FROM blobs").fetchall()}
            refs = {ingest_file(self.partial, ref) for (ref,) in execute("SELECT ref FROM ingests").fetchall()}
        for entry in os.scandir(self.blobs):
            if entry.name not in known:
                Path(entry.path).unlink(missing_ok=True)
        for path in self.partial.iterdir():
            if path not in refs:
                path.unlink(missing_ok=True)

    def _follow(self) -> None:
        """Brings index.json up to date: at once where that is cheap, else soon, so that a thousand tags do not write it a
        thousand times."""
        with self._index_lock:
            if time.monotonic() - self._index_written > _INDEX_SHARE * self._index_took:
                self._write_index()
            elif self._index_timer is None:
                self._index_timer = threading.Timer(_INDEX_SHARE * self._index_took, self._write_late)
                self._index_timer.daemon = True
                self._index_timer.start()

    def _write_late(self) -> None:
        with self._index_lock:
            if self._index_timer is not None:
                self._write_index()

    def _write_index(self) -> None:
        """Under the index's lock, or before anybody else has the store."""
        started = time.monotonic()
        if self._index_timer is not None:
            self._index_timer.cancel()
            self._index_timer = None
        text = json.dumps(_index(self.list()), indent=1, sort_keys=True)
        path = self.root / "index.json"
        temporary = path.with_name("index.json.new")
        try:
            temporary.write_text(text)
            temporary.replace(path)  # not synced: written anew when the store is opened
        except OSError:  # a full disk: what the database says is done all the same, and the next change tries again
            with suppress(OSError):
                temporary.unlink()
        self._index_written = time.monotonic()
        self._index_took = self._index_written - started


def _index(images: Iterator[Image]) -> dict[str, Any]:
    """OCI image-spec, image-index.md; each reference becomes a manifest with the ref.name annotation."""
    manifests = []
    for image in images:
        target = image.target
        entry: dict[str, Any] = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
        if target.platform:
            system, _, rest = target.platform.partition("/")
            architecture, _, variant = rest.partition("/")
            entry["platform"] = {"architecture": architecture, "os": system}
            if variant:
                entry["platform"]["variant"] = variant
        entry["annotations"] = {**target.annotations, REF_NAME: image.name}
        manifests.append(entry)
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}


def _blob(row: Any) -> BlobRow:
    digest, size, created, labels, deleting = row
    return BlobRow(BlobInfo(Digest(digest), size, created, json.loads(labels)), bool(deleting))


def _image(row: Any) -> Image:
    name, media_type, digest, size, annotations, platform, labels, updated = row
    target = Descriptor(media_type, Digest(digest), size, json.loads(annotations), platform)
    return Image(name, target, json.loads(labels), updated)
