"""Snapshotters whose layers lie upon each other: a layer is a directory of what it changes, with marks for what it removes.

Whatever puts them together, a row has a directory ``<root>/snapshots/<number>`` with fs/, its own files, and work/ where it is
written to.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from wherry.errors import Invalid
from wherry.interfaces.common import Mount
from wherry.interfaces.snapshotter import ApartLayer, SnapshotOptions
from wherry.kit.snapshots.directories import DirectorySnapshotter
from wherry.kit.snapshots.rows import MountOptions, SnapshotRow
from wherry.layers.overlaid import drop_idle_removals
from wherry.layers.whiteouts import XATTRS

#: Empty directories that are kept for the next containers. On an ext4 without a journal a new inode takes a third of a millisecond
#: where many were deleted lately, as it searches past each of them.
SPARES = 32


class RootAttributes(NamedTuple):
    """What a merged tree's root looks like is its topmost directory's matter."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[str, bytes]


class StackedSnapshotter(DirectorySnapshotter):
    """Implements ``wherry.api.LayerSnapshotter`` with "rebase". prepare is one commit and three directories,
    or the renaming of some that a container has left empty.

    A driver adds ``merged``. opaque: the xattrs, "y", that hide what a directory has in lower layers. remaps: whether ids can be
    remapped.
    """

    def __init__(self, name: str, root: Path, *, opaque: Sequence[str], remaps: bool) -> None:
        self._spares: deque[str] = deque()  # names, in _making as well; who takes one out has it
        super().__init__(name, root)
        self._opaque = opaque
        self._remaps = remaps
        self._roots: dict[int, RootAttributes] = {}  # of committed ones, which never change

    def usage(self, name: str) -> tuple[int, int]:
        row = self.rows.get(name)
        if row.bytes >= 0:
            return row.bytes, row.inodes
        try:
            return self.measured(row, self._fs(row.number))
        except FileNotFoundError:  # a view of one layer has no directory of its own
            return 0, 0

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self.check(key, options)
        extra = MountOptions(options.idmap, options.volatile).pack()
        with self.rows.prepare(key, parent, options.labels, "active", extra, durable=options.durable) as row:
            self._make(row, work=True)
        return self.mounts_of(row)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self.check(key, options)
        extra = MountOptions(options.idmap).pack()
        with self.rows.prepare(key, parent, options.labels, "view", extra, durable=options.durable) as row:
            if not row.lowers:
                self._make(row, work=False)
        return self.mounts_of(row)

    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        with self.rows.rebase(key, parent) as row:
            fs = self._fs(row.number)
            if not layer.root:
                _dress(fs, self._root_of(row.lowers[0]))
            if layer.removals:
                drop_idle_removals(fs, [self._fs(number) for number in row.lowers], layer.removals, self._opaque)
        return self.mounts_of(row)

    def cleanup(self) -> int:
        freed = super().cleanup()
        self._drop_spares()
        return freed

    def close(self) -> None:
        super().close()
        self._drop_spares()

    # directories

    def _fs(self, number: int) -> str:
        return f"{self.prefix}{number}/fs"

    def _make(self, row: SnapshotRow, *, work: bool) -> None:
        """The directories, before their row is committed: a durable commit's fsync takes them to the disk's journal as well."""
        directory = f"{self.prefix}{row.number}"
        spare = work and self._take_spare(directory)
        if not spare:
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:  # a crash before the commit left one, and the number with it
                self.erase(str(row.number))
                os.mkdir(directory, 0o700)
        try:
            if not spare:
                os.mkdir(f"{directory}/fs", 0o755)
            if row.lowers:
                _dress(f"{directory}/fs", self._root_of(row.lowers[0]))
            if work and not spare:
                os.mkdir(f"{directory}/work", 0o711)
        except BaseException:
            self.erase(str(row.number))
            raise

    def _take_spare(self, directory: str) -> bool:
        """Gives a spare that name; False where there is none, or it can't be had."""
        try:
            spare = self._spares.pop()
        except IndexError:
            return False
        try:
            os.rename(self.prefix + spare, directory)
        except OSError:
            self._trash.add(spare)
            return False
        finally:
            self.making.discard(spare)
        return True

    def _discard(self, name: str) -> int:
        """What nothing was written to becomes a spare. fs/ and work/ are others then: of what a container can reach nothing comes back,
        and a mount that somebody keeps, by a descriptor from inside it, has neither of them in use."""
        directory, spare = f"{self.prefix}{name}", f"spare-{secrets.token_hex(4)}"
        self.making.add(spare)
        try:
            if len(self._spares) < SPARES and self._clear(directory):
                os.rmdir(f"{directory}/work")
                os.mkdir(f"{directory}/fs", 0o755)
                os.mkdir(f"{directory}/work", 0o711)
                os.rename(directory, self.prefix + spare)
                self._spares.append(spare)
                return 0
        except OSError:  # a view, which is not written to; or the disk is full
            pass
        self.making.discard(spare)
        return self.erase(name)

    def _drop_spares(self) -> None:
        while self._spares:
            with suppress(IndexError):
                spare = self._spares.pop()
                self.erase(spare)
                self.making.discard(spare)

    def _root_of(self, number: int) -> RootAttributes:
        known = self._roots.get(number)
        if known is None:
            path = self._fs(number)
            found = os.stat(path)
            xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path) if not name.startswith(XATTRS)}
            known = RootAttributes(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, xattrs)
            self._roots[number] = known
        return known

    def _gone(self, row: SnapshotRow) -> None:
        self._roots.pop(row.number, None)
        super()._gone(row)

    def merged(self, lowers: Sequence[str], own: str, options: MountOptions) -> Mount:
        """The layers as one tree: lowers are their directories, the topmost first. own is the directory that has fs/ and work/ and
        is written to, "" for a view."""
        raise AssertionError("a driver says how its layers are merged")

    def mounts_of(self, row: SnapshotRow) -> tuple[Mount, ...]:
        options = MountOptions.unpack(row.extra)
        lowers = [self._fs(number) for number in row.lowers]
        if not lowers:
            return (
                Mount(
                    "bind", self._fs(row.number), "", ("rbind", "rw" if row.kind == "active" else "ro"), options.idmap
                ),
            )
        if row.kind == "active":
            return (self.merged(lowers, f"{self.prefix}{row.number}", options),)
        if len(lowers) == 1:
            return (self.single(lowers[0], options),)
        return (self.merged(lowers, "", options),)

    def single(self, lower: str, options: MountOptions) -> Mount:
        """The view of one layer."""
        return Mount("bind", lower, "", ("rbind", "ro"), options.idmap)

    def check(self, key: str, options: SnapshotOptions) -> None:
        super().check(key, options)
        if (options.idmap.uids or options.idmap.gids) and not self._remaps:
            raise Invalid(
                f'snapshot "{key}"', f"{self._name} can't remap ids here", "choose a snapshotter with that capability"
            )

    def erase(self, name: str) -> int:
        return 0 if self._erase_empty(f"{self.prefix}{name}") else super().erase(name)

    @classmethod
    def _erase_empty(cls, directory: str) -> bool:
        """Deletes that of a container that wrote nothing, in a tenth of the time; False when there is something in it."""
        if not cls._clear(directory):
            return False
        try:
            for name in ("/work", ""):
                with suppress(FileNotFoundError):
                    os.rmdir(directory + name)
        except OSError:
            return False
        return True

    @staticmethod
    def _clear(directory: str) -> bool:
        """Deletes fs/ and what the kernel's mount has made in work/, incompat/ a volatile one; False when there is more."""
        try:
            with suppress(FileNotFoundError):
                os.rmdir(directory + "/fs")
            with suppress(FileNotFoundError):
                os.unlink(directory + "/work/work/incompat/volatile/dirty")
                for name in ("/work/work/incompat/volatile", "/work/work/incompat"):
                    os.rmdir(directory + name)
            with suppress(FileNotFoundError):
                os.rmdir(directory + "/work/work")
        except OSError:
            return False
        return True


def _dress(path: str, root: RootAttributes) -> None:
    """Owner first: chown(2) clears set-id bits."""
    found = os.stat(path)
    if (found.st_uid, found.st_gid) != (root.uid, root.gid):
        os.chown(path, root.uid, root.gid)
    for name, value in root.xattrs.items():
        os.setxattr(path, name, value)
    os.chmod(path, root.mode)
    os.utime(path, ns=(root.mtime, root.mtime))


__all__ = ["StackedSnapshotter"]
