"""Resolves ``archive:PATH`` and streams its members."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from wherry.api import Descriptor, Invalid, Named, NotFound
from wherry.spec.distribution import host_platform
from wherry_plugins.transport.archive.file import ArchiveFile
from wherry_plugins.transport.archive.formats import Contents, read_contents, read_tree

TREE = "rootfs:"
"""Begins the reference of a file that is the tree of one image: ``archive:rootfs:/path/x.tar``."""

_KEPT = 2
_SECONDS = 60.0  # after the last use an archive is closed: an unpacked one takes space


class ArchiveTransport:
    """Implements ``wherry.api.Transport``; the last archives stay open between resolve and fetch."""

    def __init__(self, scratch: Path, max_unpacked: int) -> None:
        self._scratch = scratch
        self._max_unpacked = max_unpacked
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[ArchiveFile, Contents]] = OrderedDict()
        self._timer: threading.Timer | None = None

    def resolve(self, reference: str, platform: str) -> tuple[Named, ...]:
        with self._lock:
            _archive, contents = self._get(reference, platform)
            return contents.images

    def fetch(self, reference: str, descriptor: Descriptor, offset: int) -> BinaryIO:
        with self._lock:
            archive, contents = self._get(reference)
            if descriptor.digest in contents.documents:
                return io.BytesIO(contents.documents[descriptor.digest][offset:])
            member = contents.layers.get(descriptor.digest)
            if member is None:
                member = archive.find(f"blobs/sha256/{descriptor.digest.partition(':')[2]}")
            if member is None:
                raise NotFound(f'blob "{descriptor.digest}"', f"is not in the {archive.what}")
            return cast(BinaryIO, archive.window(member, offset))

    def push(self, reference: str, descriptor: Descriptor, stream: BinaryIO) -> None:
        raise Invalid(f'archive "{reference}"', "can't be pushed to")

    def _get(self, reference: str, platform: str = "") -> tuple[ArchiveFile, Contents]:
        """platform: for a tree, which has none of its own; "" is that of the last resolve."""
        whole = reference.startswith(TREE)
        path = Path(reference.removeprefix(TREE))
        if not path.is_absolute():
            raise Invalid(f'archive "{reference}"', "is not an absolute path")
        found = self._open.get(reference)
        if found is not None:
            with suppress(OSError):
                now = path.stat()
                same = found[0].identity == (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
                if same and not (whole and platform):
                    self._open.move_to_end(reference)
                    self._wind()
                    return found
            self._open.pop(reference)[0].close()
        archive = ArchiveFile(path, self._scratch, self._max_unpacked, whole=whole)
        try:
            contents = read_tree(archive, platform or host_platform()) if whole else read_contents(archive)
        except BaseException:
            archive.close()
            raise
        self._open[reference] = (archive, contents)
        while len(self._open) > _KEPT:
            self._open.popitem(last=False)[1][0].close()
        self._wind()
        return archive, contents

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(_SECONDS, self.close)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Closes what is open; the next use opens it again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1][0].close()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
