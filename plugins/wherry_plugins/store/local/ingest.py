"""The write of one blob: a file of its own, hashed as it is written, kept until commit or abort."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from wherry.api import BlobInfo, Digest, FailedPrecondition, InUse, Invalid, Labels
from wherry.kit.files import fsync_directory

if TYPE_CHECKING:
    from wherry_plugins.store.local.store import LocalStore

_CHUNK = 1 << 20


def ingest_file(directory: Path, ref: str) -> Path:
    """The partial file of a ref: refs are free text, so their hash is the name."""
    return directory / hashlib.sha256(ref.encode("utf-8", "surrogateescape")).hexdigest()


def dump(labels: Labels) -> str:
    """Labels as a row has them."""
    return json.dumps(dict(labels), separators=(",", ":"), sort_keys=True)


class IngestLock:
    """A partial file, locked: the one writer of its ref, in this process or another (flock(2))."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    def release(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class LocalIngest:
    """Implements ``wherry.api.Ingest``; used by one thread at a time."""

    def __init__(self, store: LocalStore, ref: str) -> None:
        self.ref = ref
        self.offset = 0
        self._store = store
        self._claim = self.claim(ingest_file(store.partial, ref), ref)
        self._hash = hashlib.sha256()
        try:
            while chunk := os.read(self._claim.fd, _CHUNK):  # what an earlier writer left counts for the digest
                self._hash.update(chunk)
                self.offset += len(chunk)
            # A power cut may take the row back, and with it no more than what could have been gone on with.
            with store.database.write(durable=False) as execute:
                execute("INSERT OR IGNORE INTO ingests (ref, created) VALUES (?, ?)", (ref, time.time_ns()))
        except BaseException:
            self._claim.release()
            raise

    @staticmethod
    def claim(path: Path, ref: str) -> IngestLock:
        """Opens and locks the partial file, made where there is none. InUse while another holds it."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                here, there = os.fstat(fd), None
                with suppress(FileNotFoundError):
                    there = path.stat()
            except BlockingIOError:
                os.close(fd)
                raise InUse(f'ingest "{ref}"', "another writer has it") from None
            except BaseException:
                os.close(fd)
                raise
            if there is not None and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                if here.st_nlink == 1:
                    return IngestLock(path, fd)
                path.unlink(missing_ok=True)  # it is a blob's file, too: a commit could not take this name away
            os.close(fd)  # its last holder committed or aborted between open and lock

    def write(self, data: bytes | memoryview, /) -> int:
        view = memoryview(data).cast("B")
        fd = self._fd()
        written = 0
        try:
            while written < len(view):
                count = os.write(fd, view[written:])
                self._hash.update(view[written : written + count])
                written += count
        except OSError as error:
            error.filename = str(self._claim.path)  # a disk that is full should have a name
            raise
        finally:
            self.offset += written
        return written

    def reader(self) -> BinaryIO:
        # By its descriptor: the name may be a blob's by now, or gone.
        return open(f"/proc/self/fd/{self._fd()}", "rb")

    def truncate(self) -> None:
        fd = self._fd()
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.offset = 0

    def commit(self, size: int | None, digest: Digest, labels: Labels) -> BlobInfo:
        fd, store = self._fd(), self._store
        target = store.path(digest)
        found = f"sha256:{self._hash.hexdigest()}"
        if size is not None and size != self.offset:
            if self.offset > size:
                self.truncate()  # it can never match; a shorter one may still be completed
            raise Invalid(f'blob "{digest}"', f"{self.offset} bytes came, {size} were announced")
        if found != digest:
            self.truncate()
            raise Invalid(f'blob "{digest}"', f"the bytes have the digest {found}")
        if store.fsync:
            try:
                os.fsync(fd)
            except OSError:
                # Told once: a second fsync(2) would succeed, with the bytes lost (fsync(2), "EIO"). All have to come again.
                self.truncate()
                raise
        with store.lock:
            known = store.row(digest)
            linked = known is None or not target.exists()
            if linked:
                # Linked, not renamed: until its row is gone the partial file keeps other writers of the ref away.
                target.unlink(missing_ok=True)  # of a commit whose row could not be written
                os.link(self._claim.path, target)
            try:
                if linked and store.fsync:
                    fsync_directory(target.parent)
                info = BlobInfo(digest, self.offset, time.time_ns(), dict(labels))
                if known is not None and not known.deleting:
                    info = BlobInfo(digest, known.info.size, known.info.created, {**known.info.labels, **labels})
                with store.database.write() as execute:
                    execute(
                        "INSERT OR REPLACE INTO blobs (digest, size, created, labels) VALUES (?, ?, ?, ?)",
                        (digest, info.size, info.created, dump(info.labels)),
                    )
                    execute("DELETE FROM ingests WHERE ref = ?", (self.ref,))
            except BaseException:
                if linked:
                    target.unlink(missing_ok=True)
                raise
        with suppress(OSError):  # else it is a stray, which goes when the store is opened
            self._claim.path.unlink()
        self._claim.release()
        return info

    def close(self) -> None:
        self._claim.release()

    def _fd(self) -> int:
        if self._claim.fd < 0:
            raise FailedPrecondition(f'ingest "{self.ref}"', "is closed")
        return self._claim.fd
