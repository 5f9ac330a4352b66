"""The layer: entries in a fixed order with fixed times, and a stream of their tar."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wherry.api import Invalid
from wherry.kit.archives import DIRECTORY, END, REGULAR, SYMLINK, TarEntry, header, padding

_CHUNK = 1 << 20
_LINKS_MAX = 40
_TEXTS = {
    "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    # Empty, for the runtime mounts its own over them: without them each container would write them to its own layer.
    "/etc/hosts": b"",
    "/etc/hostname": b"",
    "/etc/resolv.conf": b"",
}
_DIRECTORIES = {"/root": 0o700, "/tmp": 0o1777, "/var/tmp": 0o1777, "/dev": 0o755, "/proc": 0o555, "/sys": 0o555}


class LayerPlan:
    """What goes into the layer, collected path by path."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._entries: dict[str, tuple[TarEntry, str | bytes]] = {}  # path -> entry, host path or content
        self.size = 0
        self.newest = 0  # the latest mtime of a file, in seconds

    def add_base(self) -> None:
        """What any container expects to find, and the links of a merged /usr as this host has them."""
        for path, mode in _DIRECTORIES.items():
            self._directory(path, mode)
        for path, content in _TEXTS.items():
            self._parents(path)
            entry = _entry(path, REGULAR, 0o644)
            entry.size = entry.real_size = len(content)
            self._entries.setdefault(path, (entry, content))
        for path in ("/bin", "/sbin", "/lib", "/lib64"):
            if Path(path).is_symlink():
                self.add(path)

    def add(self, path: str) -> None:
        """A file of the host at its own path, with every link that leads to it."""
        todo = [part for part in reversed(path.split("/")) if part]
        real: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == ".":
                continue
            if part == "..":
                real[-1:] = []
                continue
            here = "/" + "/".join([*real, part])
            found = os.lstat(here)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _LINKS_MAX:
                    raise Invalid(f'file "{path}"', "has too many links on its way")
                target = os.readlink(here)
                entry = _entry(here, SYMLINK, 0o777)
                entry.link = os.fsencode(target)
                self._entries[here] = (entry, b"")
                if target.startswith("/"):
                    real = []
                todo += [item for item in reversed(target.split("/")) if item]
            elif stat.S_ISDIR(found.st_mode):
                self._directory(here, 0o755)
                real.append(part)
            elif stat.S_ISREG(found.st_mode) and not todo:
                self._file(here, found)
            else:
                raise Invalid(f'file "{here}"', "is neither a file nor a directory")

    def digest(self) -> tuple[str, int]:
        """(digest, size) of the tar."""
        total = hashlib.sha256()
        size = 0
        for piece in self.pieces():
            total.update(piece)
            size += len(piece)
        return f"sha256:{total.hexdigest()}", size

    def pieces(self) -> Iterator[bytes]:
        """The tar. Invalid when a file is not as long any more as it was."""
        for path in sorted(self._entries):
            entry, source = self._entries[path]
            yield header(entry)
            if isinstance(source, bytes):
                yield source
            else:
                left = entry.size
                with Path(source).open("rb") as file:
                    while left:
                        piece = file.read(min(left, _CHUNK))
                        if not piece:
                            raise Invalid(f'file "{source}"', "changed while it was read", "try again")
                        left -= len(piece)
                        yield piece
            yield padding(entry.size)
        yield END

    def _file(self, path: str, found: os.stat_result) -> None:
        if path in self._entries and self._entries[path][1] == path:
            return
        self.size += found.st_size
        if self.size > self._max_size:
            raise Invalid(f'file "{path}"', f"makes the image larger than {self._max_size} bytes")
        entry = _entry(path, REGULAR, stat.S_IMODE(found.st_mode))
        entry.uid, entry.gid = found.st_uid, found.st_gid
        entry.size = entry.real_size = found.st_size
        self.newest = max(self.newest, int(found.st_mtime))
        for name in ("security.capability",):
            try:
                entry.xattrs[name.encode()] = os.getxattr(path, name)
            except OSError:
                continue
        self._entries[path] = (entry, path)

    def _directory(self, path: str, mode: int) -> None:
        self._parents(path)
        self._entries.setdefault(path, (_entry(path, DIRECTORY, mode), b""))

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self._directory(parent, 0o755)


class PieceStream(io.RawIOBase):
    """Pieces as a readable stream, from an offset on."""

    def __init__(self, pieces: Iterator[bytes], offset: int) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        while offset > 0:
            piece = next(pieces, None)
            if piece is None:
                break
            self._rest = memoryview(piece)[offset:]
            offset -= len(piece)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # the typeshed name is __buffer
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _entry(path: str, type_: bytes, mode: int) -> TarEntry:
    entry = TarEntry()
    entry.name = os.fsencode(path).lstrip(b"/")
    entry.type = type_
    entry.mode = mode
    return entry
