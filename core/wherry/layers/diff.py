"""The layer between two trees (OCI image-spec, layer.md, "Creating"): what lower has to be changed by to become upper.

Both are walked side by side in the order of names, so that the same change gives the same bytes. A file counts as unchanged when
kind, owner, mode, size, mtime, xattrs and, for links and devices, the target are the same; mtimes with the same second whose
nanoseconds one side has lost are settled by reading both. A file of several names is carried under all of them as soon as it is under
one: a hard link to what only lower layers have is not understood by everybody.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from wherry.layers import archive
from wherry.layers.archive import TarEntry
from wherry.layers.whiteouts import WHITEOUT, XATTRS
from wherry.layers.writer import END, header, padding

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_SECOND = 1_000_000_000
Write = Callable[[bytes], object]


def diff(lower: int, upper: int, write: Write) -> int:
    """Writes the layer that turns the tree lower into upper (descriptors of their roots); how many entries it has.

    Sockets are left out, as in every runtime. Names that begin with the whiteout mark can't be said in a layer and are left out
    as well.
    """
    work = _Differ(write)
    work.root(lower, upper)
    write(END)
    return work.entries


class _Differ:
    def __init__(self, write: Write) -> None:
        self._write = write
        self._carried: dict[
            tuple[int, int], bytes
        ] = {}  # files of several names: the one that the layer has the data under
        self._unchanged: dict[tuple[int, int], list[tuple[bytes, os.stat_result, int]]] = {}  # path, new, old inode
        self.entries = 0

    def root(self, lower: int, upper: int) -> None:
        old, new = os.fstat(lower), os.fstat(upper)
        if not _same_attributes(old, new) or _xattrs(lower) != _xattrs(upper):
            self._entry(b"./", upper, new)
        self._children(lower, upper, b"")

    def _children(self, lower: int | None, upper: int, path: bytes) -> None:
        """Directories of path on both sides; lower None: everything in upper is new."""
        before = _listing(lower) if lower is not None else {}
        after = _listing(upper)
        for name in sorted(before.keys() | after.keys()):
            here = path + name
            old, new = before.get(name), after.get(name)
            if name.startswith(WHITEOUT):
                continue
            if new is None:
                self._whiteout(path, name)
            elif stat.S_ISDIR(new.st_mode):
                self._directory(lower, upper, name, here, old, new)
            elif old is None or not _same(lower, upper, name, old, new) or self._parted(here, old, new):
                self._leaf(upper, name, here, new)

    def _directory(
        self, lower: int | None, upper: int, name: bytes, path: bytes, old: os.stat_result | None, new: os.stat_result
    ) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=upper)
        below: int | None = None
        try:
            if old is not None and lower is not None and stat.S_ISDIR(old.st_mode):
                below = os.open(name, _DIRECTORY, dir_fd=lower)
            # A directory in place of something else needs no whiteout: unpacking replaces what is no directory.
            if below is None or old is None or not _same_attributes(old, new) or _xattrs(below) != _xattrs(fd):
                self._entry(path + b"/", fd, new)
            self._children(below, fd, path + b"/")
        finally:
            os.close(fd)
            if below is not None:
                os.close(below)

    def _parted(self, path: bytes, old: os.stat_result, new: os.stat_result) -> bool:
        """For a name that is unchanged: whether it has to be carried all the same, because of the file's other names."""
        if new.st_nlink < 2 or stat.S_ISSOCK(new.st_mode):
            return False
        key = (new.st_dev, new.st_ino)
        before = self._unchanged.setdefault(key, [])
        if key in self._carried or any(inode != old.st_ino for _path, _new, inode in before):
            return True
        before.append((path, new, old.st_ino))
        return False

    def _link(self, path: bytes, found: os.stat_result, first: bytes) -> None:
        entry = _described(path, found)
        entry.type, entry.link, entry.size = archive.LINK, first, 0
        self._put(entry)

    def _leaf(self, upper: int, name: bytes, path: bytes, new: os.stat_result) -> None:
        if stat.S_ISSOCK(new.st_mode):
            return
        key = (new.st_dev, new.st_ino)
        if new.st_nlink > 1 and (first := self._carried.setdefault(key, path)) != path:
            self._link(path, new, first)
            return
        self._file(upper, name, path, new)
        for other, found, _inode in self._unchanged.pop(key, ()):
            self._link(other, found, path)

    def _file(self, upper: int, name: bytes, path: bytes, new: os.stat_result) -> None:
        if stat.S_ISREG(new.st_mode):
            fd = os.open(name, _FILE, dir_fd=upper)
            try:
                self._entry(path, fd, os.fstat(fd))
            finally:
                os.close(fd)
            return
        entry = _described(path, new)
        if stat.S_ISLNK(new.st_mode):
            entry.link = os.readlink(name, dir_fd=upper)
        entry.xattrs = _xattrs_at(upper, name)
        self._put(entry)

    def _entry(self, path: bytes, fd: int, found: os.stat_result) -> None:
        """What is open: a directory, or a file with its data."""
        entry = _described(path, found)
        entry.xattrs = _xattrs(fd)
        self._put(entry)
        left = entry.size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                data = bytes(min(left, _CHUNK))  # it shrank while it was read: the header has been written
            self._write(data)
            left -= len(data)
        if entry.size:
            self._write(padding(entry.size))

    def _whiteout(self, path: bytes, name: bytes) -> None:
        entry = TarEntry()
        entry.name = path + WHITEOUT + name
        entry.mode = 0
        self._put(entry)

    def _put(self, entry: TarEntry) -> None:
        self.entries += 1
        self._write(header(entry))


def _listing(fd: int) -> dict[bytes, os.stat_result]:
    return {os.fsencode(name): os.stat(name, dir_fd=fd, follow_symlinks=False) for name in os.listdir(fd)}


def _described(path: bytes, found: os.stat_result) -> TarEntry:
    kinds = {
        stat.S_IFREG: archive.REGULAR, stat.S_IFDIR: archive.DIRECTORY, stat.S_IFLNK: archive.SYMLINK,
        stat.S_IFCHR: archive.CHAR, stat.S_IFBLK: archive.BLOCKDEV, stat.S_IFIFO: archive.FIFO,
    }  # fmt: skip
    entry = TarEntry()
    entry.name = path
    entry.type = kinds[stat.S_IFMT(found.st_mode)]
    entry.mode = stat.S_IMODE(found.st_mode)
    entry.uid, entry.gid = found.st_uid, found.st_gid
    entry.mtime = found.st_mtime_ns
    entry.size = entry.real_size = found.st_size if entry.type == archive.REGULAR else 0
    if entry.type in (archive.CHAR, archive.BLOCKDEV):
        entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return entry


def _same_attributes(old: os.stat_result, new: os.stat_result) -> bool:
    return (old.st_mode, old.st_uid, old.st_gid, old.st_mtime_ns) == (
        new.st_mode,
        new.st_uid,
        new.st_gid,
        new.st_mtime_ns,
    )


def _same(lower: int | None, upper: int, name: bytes, old: os.stat_result, new: os.stat_result) -> bool:
    """For what is no directory on the new side."""
    if lower is None or stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode):
        return False
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return False
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(name, dir_fd=lower) == os.readlink(name, dir_fd=upper)
    if stat.S_ISREG(new.st_mode) and old.st_size != new.st_size:
        return False
    if old.st_mtime_ns != new.st_mtime_ns:
        whole = not (old.st_mtime_ns % _SECOND and new.st_mtime_ns % _SECOND)
        if old.st_mtime_ns // _SECOND != new.st_mtime_ns // _SECOND or not whole or not stat.S_ISREG(new.st_mode):
            return False
        if not _same_data(lower, upper, name):
            return False
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return True  # the two overlays show one file of a layer below
    return _xattrs_at(lower, name) == _xattrs_at(upper, name)


def _same_data(lower: int, upper: int, name: bytes) -> bool:
    old = os.open(name, _FILE, dir_fd=lower)
    try:
        new = os.open(name, _FILE, dir_fd=upper)
        try:
            while True:
                one, two = os.read(old, _CHUNK), os.read(new, _CHUNK)
                if one != two:
                    return False
                if not one:
                    return True
        finally:
            os.close(new)
    finally:
        os.close(old)


def _xattrs(fd: int) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd) if not name.startswith(XATTRS)}


def _xattrs_at(fd: int, name: bytes) -> dict[bytes, bytes]:
    """By name, for what can't be opened: there is no call by directory and name before Linux 6.13."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(fd)
        return {
            os.fsencode(key): os.getxattr(name, key, follow_symlinks=False)
            for key in os.listxattr(name, follow_symlinks=False)
            if not key.startswith(XATTRS)
        }
    finally:
        os.fchdir(here)
        os.close(here)


__all__ = ["diff"]
