"""An archive as a file of named members, read in place."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from attrs import frozen

from wherry.api import Invalid, NotFound
from wherry.kit.archives import DIRECTORY, LINK, REGULAR, SYMLINK, Archive, clean
from wherry.spec.document import DOCUMENT_MAX
from wherry_plugins.transport.archive.compressed import HEAD, LAYER_PACKINGS, packing_of, unpacked

_MEMBERS_MAX = 200_000
_HOPS = 8
_HEADERS = 1 << 16  # read at once while looking for headers; data is passed over


@frozen
class Member:
    offset: int
    size: int


class ArchiveFile:
    """The members of one archive. Close it when done; windows that were given out go on.

    whole: the file is one layer; it has no members but itself, and stays packed as layers may be."""

    def __init__(self, path: Path, scratch: Path, max_unpacked: int, *, whole: bool = False) -> None:
        self.what = f'archive "{path}"'
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFound(self.what, "does not exist") from None
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise Invalid(self.what, "is not a regular file")
            self.identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            self._members: dict[bytes, Member] = {}
            self._links: dict[bytes, bytes] = {}
            packing = packing_of(os.pread(self._fd, HEAD, 0))
            if packing and not (whole and packing in LAYER_PACKINGS):
                self._unpack(packing, scratch, max_unpacked)
            self._size = os.fstat(self._fd).st_size
            if not whole:
                self._scan()
        except Invalid as error:  # the readers of layers know no name of theirs
            os.close(self._fd)
            raise Invalid(self.what, error.cause, error.hint) from error
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    @property
    def all(self) -> Member:
        """The file itself."""
        return Member(0, self._size)

    def open(self) -> BinaryIO:
        """The file itself as a stream with a descriptor, whose position is that of any other such stream."""
        stream = os.fdopen(os.dup(self._fd), "rb", buffering=0)
        stream.seek(0)
        return cast(BinaryIO, stream)

    def find(self, name: str) -> Member | None:
        """A member by its name, links followed inside the archive: older ``docker save`` wrote a layer once and linked to it."""
        path = b"/".join(clean(os.fsencode(name)))
        for _hop in range(_HOPS):
            if path in self._members:
                return self._members[path]
            if path not in self._links:
                return None
            path = self._links[path]
        return None

    def document(self, name: str) -> bytes:
        """A whole member of at most 4 MiB. NotFound, Invalid."""
        member = self.find(name)
        if member is None:
            raise NotFound(self.what, f'has no member "{name[:200]}"')
        if member.size > DOCUMENT_MAX:
            raise Invalid(self.what, f'its member "{name[:200]}" is larger than {DOCUMENT_MAX >> 20} MiB')
        return self.head(member, member.size)

    def head(self, member: Member, size: int) -> bytes:
        """The first bytes of a member."""
        return os.pread(self._fd, min(size, member.size), member.offset)

    def window(self, member: Member, offset: int) -> io.BufferedReader:
        """A member's bytes from an offset on, as a stream of its own."""
        start = min(max(offset, 0), member.size)
        return io.BufferedReader(_Window(os.dup(self._fd), member.offset + start, member.size - start), 1 << 20)

    def _unpack(self, packing: str, scratch: Path, limit: int) -> None:
        """To a file without a name: members can then be read in place, and it goes with its last descriptor."""
        target = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - its descriptor outlives this
        with target, os.fdopen(os.dup(self._fd), "rb") as raw:
            size = 0
            for piece in unpacked(raw, packing):
                size += len(piece)
                if size > limit:
                    raise Invalid(self.what, f"unpacks to more than {limit} bytes")
                target.write(piece)
            target.flush()
            # Onto the number that is ours already: with none to be had it can neither fail nor close another thread's.
            os.dup2(target.fileno(), self._fd, inheritable=False)

    def _scan(self) -> None:
        source = _Source(self._fd, self._size)
        archive = Archive(source, chunk=_HEADERS)
        for number, entry in enumerate(archive):
            if number >= _MEMBERS_MAX:
                raise Invalid(self.what, f"has more than {_MEMBERS_MAX} members")
            name = b"/".join(clean(entry.name))
            if entry.type == DIRECTORY or not name:
                continue
            self._members.pop(name, None)
            self._links.pop(name, None)
            if entry.type == REGULAR and entry.sparse is None:
                if archive.position + entry.size > self._size:
                    raise Invalid(self.what, "is cut short")
                self._members[name] = Member(archive.position, entry.size)
            elif entry.type == LINK:
                self._links[name] = b"/".join(clean(entry.link))
            elif entry.type == SYMLINK:
                self._links[name] = b"/".join(clean(name.rpartition(b"/")[0] + b"/" + entry.link))


class _Source:
    """Reads headers and passes over data."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._at = 0

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, size, self._at)
        self._at += len(data)
        return data

    def skip(self, size: int) -> None:
        self._at += size
        if self._at > self._size + 511:  # the padding of a last member may be missing
            raise Invalid("archive", "is cut short")


class _Window(io.RawIOBase):
    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._at = start
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed names it __buffer
        view = memoryview(buffer)[: self._left]
        count = os.preadv(self._fd, [view], self._at) if view else 0
        self._at += count
        self._left -= count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()
