"""Resolves ``archive:PATH`` and streams its members."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from wherry.api import Descriptor, Invalid, NamedImage, NotFound, Workers
from wherry.spec.distribution import host_platform
from wherry_plugins.transport.archive.file import ArchiveFile
from wherry_plugins.transport.archive.formats import Contents, read_contents, read_tree

TREE = "rootfs:"
"""Begins the reference of a file that is the tree of one image: ``archive:rootfs:/path/x.tar``."""

_KEPT = 4
_SECONDS = 60.0  # after the last use archives are closed: an unpacked one takes space


class _Slot:
    """One archive, open or not; used under its lock, which is held as long as it takes to unpack it."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.lock = threading.Lock()
        self._archive: ArchiveFile | None = None
        self._contents = Contents((), {}, {})
        self._platform = ""

    def open(
        self, scratch: Path, limit: int, platform: str, describe: Callable[[BinaryIO], Descriptor]
    ) -> tuple[ArchiveFile, Contents]:
        """What was open, if the file is still the same, else it is read anew. platform: for a tree, which has none of its own; ""
        is that of the last time."""
        whole = self.reference.startswith(TREE)
        path = Path(self.reference.removeprefix(TREE))
        if not path.is_absolute():
            raise Invalid(f'archive "{self.reference}"', "is not an absolute path")
        platform = platform or self._platform
        if self._archive is not None:
            with suppress(OSError):
                now = path.stat()
                same = self._archive.identity == (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
                if same and (not whole or platform == self._platform):
                    return self._archive, self._contents
            self.close()
        archive = ArchiveFile(path, scratch, limit, whole=whole)
        try:
            if whole:
                self._contents = read_tree(archive, platform or host_platform(), describe)
            else:
                self._contents = read_contents(archive)
        except BaseException:
            archive.close()
            raise
        self._archive, self._platform = archive, platform
        return archive, self._contents

    def close(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            archive.close()


class ArchiveTransport:
    """Implements ``wherry.api.Transport``; the last archives stay open between resolve and fetch. One that takes long to read
    keeps nobody from another one."""

    def __init__(self, scratch: Path, max_unpacked: int, workers: Workers) -> None:
        self._scratch = scratch
        self._max_unpacked = max_unpacked
        self._workers = workers
        self._lock = threading.Lock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._timer: threading.Timer | None = None

    def resolve(self, reference: str, platform: str) -> tuple[NamedImage, ...]:
        with self._using(reference) as slot:
            _archive, contents = self._open(slot, platform)
            return contents.images

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        with self._using(reference) as slot:
            archive, contents = self._open(slot, "")
            if descriptor.digest in contents.documents:
                return io.BytesIO(contents.documents[descriptor.digest][offset:])
            member = contents.layers.get(descriptor.digest)
            if member is None:
                member = archive.find(f"blobs/sha256/{descriptor.digest.partition(':')[2]}")
            if member is None:
                raise NotFound(f'blob "{descriptor.digest}"', f"is not in the {archive.what}")
            return cast(BinaryIO, archive.window(member, offset))

    def _open(self, slot: _Slot, platform: str) -> tuple[ArchiveFile, Contents]:
        return slot.open(self._scratch, self._max_unpacked, platform, self._workers.describe)

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        raise Invalid(f'archive "{reference}"', "can't be pushed to")

    @contextmanager
    def _using(self, reference: str) -> Iterator[_Slot]:
        slot = self._slot(reference)
        with slot.lock:
            try:
                yield slot
            finally:
                with self._lock:
                    dropped = self._slots.get(reference) is not slot
                if dropped:  # before it was locked here: nobody else would close it
                    slot.close()

    def _slot(self, reference: str) -> _Slot:
        """That of the reference; of the others those not used for longest go, unless somebody is at them."""
        with self._lock:
            slot = self._slots.setdefault(reference, _Slot(reference))
            self._slots.move_to_end(reference)
            self._drop(list(self._slots)[: -_KEPT or None])
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(_SECONDS, self.close)
            self._timer.daemon = True
            self._timer.start()
            return slot

    def _drop(self, references: list[str]) -> None:
        for reference in references:
            slot = self._slots[reference]
            if slot.lock.acquire(blocking=False):
                try:
                    slot.close()
                finally:
                    slot.lock.release()
                del self._slots[reference]

    def close(self) -> None:
        """Closes what is open and not in use; the next use opens it again."""
        with self._lock:
            self._drop(list(self._slots))
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
