"""Unpacks one layer into a tree (OCI image-spec, layer.md, "Applying Changesets").

The tree is what the lower layers made: with overlayfs the mounted overlay, so that a removal becomes the kernel's own whiteout,
with vfs a plain copy. Whiteouts act on what lower layers brought and never on what this layer brings, wherever they stand in the
archive; a name given twice means its last entry.

A layer can also be unpacked apart from its parents, into an empty directory that overlayfs will lay over them: then what it removes is
written down as overlayfs reads it. That works for as long as the layer itself lists each directory before what lies in it, as most
writers do; a layer whose meaning depends on what is below says so by FailedPrecondition.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection

from wherry.errors import FailedPrecondition, Invalid
from wherry.layers import archive
from wherry.layers.admission import FOREIGN_XATTRS, admitted, check_device
from wherry.layers.ahead import DigestThread, ReadAhead
from wherry.layers.archive import Archive, TarEntry
from wherry.layers.compression import Layer, Readable
from wherry.layers.hardlinks import HardLinks
from wherry.layers.paths import Directory, RootedTree, clean, remove, show
from wherry.layers.whiteouts import META, OPAQUE, WHITEOUT, is_removal

#: What a layer may cost, in bytes of memory and in steps of a walk, however little of it there is; and what each byte of the blob
#: adds. Ordinary layers stay far below the first: it is for those that a few kilobytes blow up.
COST_FREE, COST_PER_BYTE = 16 << 20, 2
STEPS_FREE, STEPS_PER_BYTE = 300_000, 1
#: What a whiteout can't hide: nothing, its directory, and the directory above.
_NOTHING = frozenset((b"", b".", b".."))
_ENTRY, _MADE, _RECORD = 128, 256, 64
_FULL = (errno.ENOSPC, errno.EDQUOT)
Ids = Callable[[int], int]


class Applied:
    """What one layer did: its digests, how many bytes and entries it had, whether one of them was the root directory, and in which
    directories it marked names as removed."""

    __slots__ = ("diff_id", "digest", "entries", "removals", "root", "size")

    def __init__(
        self, digest: str, diff_id: str, size: int, entries: int, *, root: bool, removals: Collection[bytes]
    ) -> None:
        self.digest = digest
        self.diff_id = diff_id
        self.size = size
        self.entries = entries
        self.root = root
        self.removals = removals


def apply(
    root: int, raw: Readable, *, uids: Ids = int, gids: Ids = int, devices: bool = True, marks: bytes = b"",
    digested: bool = True,
) -> Applied:  # fmt: skip
    """Unpacks the layer that raw yields below the directory root (a descriptor).

    uids and gids turn the archive's ids into those to write; devices False leaves device nodes out, as a user namespace has
    to. marks: root is empty and its parents are elsewhere; removals are written as overlayfs has them, with xattrs that begin so
    ("trusted.overlay."). digested: whether the digest of the blob is wanted as well. Raises Invalid for what breaks a layer rule,
    OSError for what the file system refuses, with marks FailedPrecondition for what only the parents could tell. The umask has
    to be 0.
    """
    inner = DigestThread(hashlib.sha256())
    try:
        return _apply(root, Layer(raw, digested=digested, inner=inner), uids, gids, devices=devices, marks=marks)
    finally:
        inner.close()


def _apply(root: int, layer: Layer, uids: Ids, gids: Ids, *, devices: bool, marks: bytes) -> Applied:
    source = ReadAhead(layer)
    members = Archive(source)
    work = _Unpacker(root, uids, gids, devices=devices, marks=marks)
    try:
        for entry in members:
            try:
                work.entry(entry, members)
            except OSError as error:
                # A call by descriptor names no file; what can't be read of the stream has other numbers.
                if error.errno in _FULL and error.filename is None:
                    error.filename = f"{show(clean(entry.name))} of a layer"
                raise
            work.afford(entry, members.records, layer.compressed)
        members.drain()
        work.finish()
        removals = work.removals()
    finally:
        source.close()
        work.tree.forget()
    return Applied(layer.digest, layer.diff_id, layer.size, work.entries, root=work.wrote_root, removals=removals)


def afford(cost: int, entries: int, records: int, compressed: int) -> None:
    """Invalid where so many entries and records of extended headers, and cost bytes besides, are more than a blob's size justifies."""
    if cost + _ENTRY * entries + _RECORD * records > COST_FREE + COST_PER_BYTE * compressed:
        raise Invalid("layer", f"{compressed} bytes yield more than {entries - 1} entries: a bomb")


class _Unpacker:
    def __init__(self, root: int, uids: Ids, gids: Ids, *, devices: bool, marks: bytes) -> None:
        self.tree = RootedTree(root, (uids(0), gids(0)))
        self.uids = uids
        self.gids = gids
        self.devices = devices
        self.entries = 0
        self.wrote_root = False
        self._opaque = marks + b"opaque" if marks else b""
        self._removals: set[bytes] = set()  # directories with marks of removed names
        self._names = 0  # bytes of all names
        # By keys of ``wherry.layers.paths``, which take less memory than tuples:
        self._brought: set[bytes] = set()  # this layer's own paths
        self._above: set[bytes] = set()  # and the directories that they lie in
        self._pruned: set[bytes] = set()  # directories that have nothing of lower layers any more
        self._siblings = HardLinks(root)
        self._times: dict[bytes, int] = {}  # directories' mtimes, set at the end: work inside changes them
        self._modes: dict[bytes, int] = {}  # those with set-id bits, which fuse-overlayfs drops as it copies up

    def entry(self, entry: TarEntry, members: Archive) -> None:
        self.entries += 1
        parts = clean(entry.name)
        if entry.xattrs:
            entry.xattrs = admitted(entry)
        if not parts:
            self._root(entry)
            return
        name = parts[-1]
        if name.startswith(WHITEOUT):
            self._whiteout(parts[:-1], name)
            return
        if WHITEOUT in entry.name and any(part.startswith(WHITEOUT) for part in parts):
            return  # below AUFS' own directories: nothing of the image
        parent = self._parent(parts[:-1])
        self._keep_times(parent)
        if not self._opaque:
            self._bring(parent, name)
        if entry.type == archive.DIRECTORY:
            self._directory(entry, parent, name)
        elif entry.type == archive.REGULAR:
            self._file(entry, parent, name, members)
        elif entry.type == archive.LINK:
            self._link(entry, parent, name)
        elif entry.type == archive.SYMLINK:
            if not entry.link:
                raise Invalid("layer", f'"{show(parts)}" is a link without a target')
            self._create(parent, name, lambda: os.symlink(entry.link, name, dir_fd=parent.fd))
            self._attributes(entry, parent, name)
        else:
            self._node(entry, parent, name)

    def afford(self, entry: TarEntry, records: int, compressed: int) -> None:
        """Invalid for a layer that takes more than its own size justifies: it would exhaust memory, inodes or patience."""
        self._names += len(entry.name)
        afford(self._names + _MADE * len(self.tree.made), self.entries, records, compressed)
        if self.tree.steps > STEPS_FREE + STEPS_PER_BYTE * compressed:
            raise Invalid("layer", "its names lead through too many links and directories: a bomb")

    def removals(self) -> Collection[bytes]:
        """Those that are directories still."""
        found = []
        for key in sorted(self._removals):
            try:
                if self.tree.directory(tuple(key.split(b"/")), make=False).key == key:
                    found.append(key)
            except (FileNotFoundError, Invalid):
                continue
        return found

    def finish(self) -> None:
        """Directories' times, deepest first, where they still are directories."""
        for key in self.tree.made:
            self._times.setdefault(key, 0)  # the same tree whenever it is unpacked
        for key in sorted(self._times, key=len, reverse=True):
            try:
                directory = self.tree.directory(tuple(key.split(b"/")) if key else (), make=False)
            except (FileNotFoundError, Invalid):
                continue
            if directory.key == key:
                if self._modes.get(key, mode := stat.S_IMODE(os.fstat(directory.fd).st_mode)) != mode:
                    os.fchmod(directory.fd, self._modes[key])
                os.utime(directory.fd, ns=_times(self._times[key]))

    # what an entry does

    def _root(self, entry: TarEntry) -> None:
        if entry.type != archive.DIRECTORY:
            raise Invalid("layer", "an entry names the root and is no directory")
        self._finish_fd(self.tree.root.fd, entry, known=True)
        self._times[b""] = entry.mtime
        self._modes.pop(b"", None)
        self.wrote_root = True

    def _directory(self, entry: TarEntry, parent: Directory, name: bytes) -> None:
        known = replaced = False
        try:
            os.mkdir(name, entry.mode & 0o777, dir_fd=parent.fd)
        except FileExistsError:
            known = True
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode):
                self._clear(parent, name)
                os.mkdir(name, entry.mode & 0o777, dir_fd=parent.fd)
                replaced = True
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
        try:
            if replaced and self._opaque:
                os.setxattr(fd, self._opaque, b"y")  # a directory of the parents was gone already
            self._finish_fd(fd, entry, known=known)
        finally:
            os.close(fd)
        self._times[parent.below(name)] = entry.mtime
        self._modes.pop(parent.below(name), None)

    def _file(self, entry: TarEntry, parent: Directory, name: bytes, members: Archive) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = self._create(parent, name, lambda: os.open(name, flags, entry.mode & 0o777, dir_fd=parent.fd))
        try:
            if entry.sparse is None:
                for piece in members.data():
                    _write(fd, piece)
            else:
                os.ftruncate(fd, entry.real_size)
                _write_sparse(fd, entry, members)
            made = os.fstat(fd)
            # Most are right as they were made; a default ACL, the directory's set-gid bit or a mount option may have made others.
            if (made.st_mode & 0o7777, made.st_uid, made.st_gid) != (
                entry.mode, self.uids(entry.uid), self.gids(entry.gid),
            ) or entry.xattrs:  # fmt: skip
                self._finish_fd(fd, entry)
            os.utime(fd, ns=_times(entry.mtime))
        finally:
            os.close(fd)

    def _link(self, entry: TarEntry, parent: Directory, name: bytes) -> None:
        target = clean(entry.link)
        shown = f'"{show((*parent.real, name))}" is a hard link to "{show(target)}"'
        if not target:
            raise Invalid("layer", f"{shown}, which is the root")
        try:
            source = self.tree.directory(target[:-1], make=False)
            found = os.stat(target[-1], dir_fd=source.fd, follow_symlinks=False)
            if self._opaque and is_removal(found):
                raise FileNotFoundError
        except FileNotFoundError:
            self._ask_the_parents()
            raise Invalid("layer", f"{shown}, which does not exist") from None
        if stat.S_ISDIR(found.st_mode):
            raise Invalid("layer", f"{shown}, which is a directory")
        if (*source.real, target[-1]) == (*parent.real, name):
            return  # to itself: it stays as it is

        siblings = self._siblings.of(found)

        def link() -> None:
            # Looked up again: replacing a name closes the directories of before.
            where = self.tree.directory(target[:-1], make=False)
            os.link(target[-1], name, src_dir_fd=where.fd, dst_dir_fd=parent.fd, follow_symlinks=False)

        self._create(parent, name, link)
        if os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode != found.st_mode:
            os.chmod(
                name, stat.S_IMODE(found.st_mode), dir_fd=parent.fd
            )  # fuse-overlayfs drops set-id bits as it copies up
        for path in siblings:
            self._keep_together(clean(path), found.st_ino, (*parent.real, name))

    def _keep_together(self, path: tuple[bytes, ...], inode: int, one: tuple[bytes, ...]) -> None:
        """Makes path, if it still is a name of the inode that was copied up, a name of the copy: of one."""
        try:
            where = self.tree.directory(path[:-1], make=False)
            if (
                path == one
                or where.real != path[:-1]
                or os.stat(path[-1], dir_fd=where.fd, follow_symlinks=False).st_ino != inode
            ):
                return
        except (FileNotFoundError, Invalid):
            return
        self._keep_times(where)
        os.unlink(path[-1], dir_fd=where.fd)
        source = self.tree.directory(one[:-1], make=False)
        os.link(one[-1], path[-1], src_dir_fd=source.fd, dst_dir_fd=where.fd, follow_symlinks=False)

    def _node(self, entry: TarEntry, parent: Directory, name: bytes) -> None:
        kinds = {archive.CHAR: stat.S_IFCHR, archive.BLOCKDEV: stat.S_IFBLK, archive.FIFO: stat.S_IFIFO}
        mode = kinds[entry.type] | (entry.mode & 0o777)
        device = 0
        if entry.type != archive.FIFO:
            if not self.devices:
                return
            check_device(entry)
            device = os.makedev(entry.devmajor, entry.devminor)
        self._create(parent, name, lambda: os.mknod(name, mode, device, dir_fd=parent.fd))
        self._attributes(entry, parent, name)

    def _whiteout(self, directory: tuple[bytes, ...], name: bytes) -> None:
        hidden = name[len(WHITEOUT) :]
        if name != OPAQUE and name.startswith(META):
            return  # AUFS' own: nothing of the image
        if hidden in _NOTHING:
            raise Invalid("layer", f'"{show((*directory, name))}" is a whiteout of nothing')
        try:
            parent = self.tree.directory(directory, make=False)
        except FileNotFoundError:
            self._ask_the_parents()
            return  # nothing there to hide
        self._keep_times(parent)
        if self._opaque:
            self._note_removal(parent, None if name == OPAQUE else hidden)
        elif name == OPAQUE:
            self._prune(parent.real)
        elif parent.below(hidden) in self._above or parent.below(hidden) in self._brought:
            self._prune((*parent.real, hidden))
        else:
            self._clear(parent, hidden)

    def _note_removal(self, parent: Directory, name: bytes | None) -> None:
        """For overlayfs: nothing of the parents' is seen under a name (None: in the whole directory), this layer's own is."""
        fd = parent.fd
        if name is None:
            if not parent.real:
                self._ask_the_parents()  # overlayfs takes no such mark on a root
            os.setxattr(fd, self._opaque, b"y")
            return
        try:
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)
            if parent.key:  # a root is always merged
                self._removals.add(parent.key)
            return
        if stat.S_ISDIR(mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.setxattr(below, self._opaque, b"y")
            finally:
                os.close(below)

    def _prune(self, real: tuple[bytes, ...]) -> None:
        """Removes what lower layers brought below a directory; this layer's own entries stay."""
        todo = [real]
        while todo:
            parts = todo.pop()
            try:
                directory = self.tree.directory(parts, make=False)
            except (FileNotFoundError, Invalid):
                continue  # this layer's own file, or nothing
            if directory.real != parts:
                continue  # a link of this layer: what it leads to is another directory's matter
            if directory.key in self._pruned:
                continue  # nor has anything below it come back since
            self._pruned.add(directory.key)
            self._keep_times(directory)
            fd = directory.fd
            for child in map(os.fsencode, os.listdir(fd)):
                path = directory.below(child)
                if path in self._above or path in self._brought:
                    todo.append((*parts, child))
                else:
                    remove(fd, child)
        self.tree.forget()

    # parts of it

    def _parent(self, parts: tuple[bytes, ...]) -> Directory:
        """Where an entry goes; made where nobody lists it."""
        if not self._opaque:
            return self.tree.directory(parts)
        try:
            return self.tree.directory(parts, make=False)
        except FileNotFoundError:
            self._ask_the_parents()
            raise

    def _ask_the_parents(self) -> None:
        if self._opaque:
            raise FailedPrecondition(
                "layer", "means something only together with those below it", "unpack it over them"
            )

    def _bring(self, parent: Directory, name: bytes) -> None:
        self._brought.add(parent.below(name))
        above = parent.key
        while above and above not in self._above:
            self._above.add(above)
            above = above.rpartition(b"/")[0]

    def _keep_times(self, directory: Directory) -> None:
        """A directory that this layer has no entry for keeps the mtime it had, and its set-id bits."""
        if directory.key not in self._times:
            found = os.fstat(directory.fd)
            self._times[directory.key] = 0 if directory.key in self.tree.made else found.st_mtime_ns
            if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
                self._modes[directory.key] = stat.S_IMODE(found.st_mode)

    def _create(self, parent: Directory, name: bytes, make: Callable[[], int | None]) -> int:
        try:
            return make() or 0
        except FileExistsError:
            self._clear(parent, name)
            return make() or 0

    def _clear(self, parent: Directory, name: bytes) -> None:
        try:
            mode = os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        remove(parent.fd, name)
        if not stat.S_ISREG(mode):
            # Cached directories may lie behind what is gone now; this one stays open for the caller.
            self.tree.forget(kept=parent)

    def _finish_fd(self, fd: int, entry: TarEntry, *, known: bool = False) -> None:
        """Owner, xattrs, mode: in this order, since chown(2) clears set-id bits and file capabilities.

        known: a directory that was there before; the entry says all there is about it, so other xattrs go.
        """
        os.fchown(fd, self.uids(entry.uid), self.gids(entry.gid))
        if known:
            for key in map(os.fsencode, os.listxattr(fd)):
                if key not in entry.xattrs and not key.startswith((*FOREIGN_XATTRS, b"security.selinux")):
                    os.removexattr(fd, key)
        if entry.xattrs:
            self._xattrs(fd, entry)
        os.fchmod(fd, entry.mode)

    def _attributes(self, entry: TarEntry, parent: Directory, name: bytes) -> None:
        """The same by name, for what can't be opened: made just now, and nobody else is here."""
        os.chown(name, self.uids(entry.uid), self.gids(entry.gid), dir_fd=parent.fd, follow_symlinks=False)
        if entry.xattrs:
            here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fchdir(parent.fd)  # setxattrat(2) is too new
                self._xattrs(name, entry)
            finally:
                os.fchdir(here)
                os.close(here)
        if entry.type != archive.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        os.utime(name, ns=_times(entry.mtime), dir_fd=parent.fd, follow_symlinks=False)

    def _xattrs(self, target: int | bytes, entry: TarEntry) -> None:
        for key, value in entry.xattrs.items():
            try:
                os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                # Not on this file system, or not from inside a user namespace: other runtimes go on as well.
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    raise


def _write(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _write_sparse(fd: int, entry: TarEntry, members: Archive) -> None:
    pieces = iter(entry.sparse or ())
    offset = left = 0
    for data in members.data():
        piece = data
        while piece:
            while not left:
                offset, left = next(pieces)
            count = os.pwrite(fd, piece[:left], offset)
            piece = piece[count:]
            offset += count
            left -= count


def _times(mtime: int) -> tuple[int, int]:
    return mtime, mtime


__all__ = ["Applied", "afford", "apply"]
