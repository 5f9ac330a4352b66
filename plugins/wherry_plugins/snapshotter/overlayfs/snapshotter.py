"""The snapshotter: rows by ``wherry.layers.snapshots``, one directory a row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.api import Context, FailedPrecondition, Invalid, Labels, Mount, SnapshotInfo, SnapshotOptions
from wherry.layers.paths import remove as remove_tree
from wherry.layers.snapshots import Row, Snapshots
from wherry.layers.trash import Trash
from wherry.layers.usage import usage
from wherry.linux import userns

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.overlayfs import OverlayConfig

UNPACK = "wherry.unpack"  # a label: this snapshot takes a layer


class OverlaySnapshotter:
    """Implements ``wherry.api.Snapshotter``. prepare is one commit and three directories; remove is one commit, and the
    directories go a moment later, off the path of whoever removes a container."""

    def __init__(self, config: OverlayConfig, context: Context) -> None:
        self._directory = context.root / "snapshots"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._prefix = f"{self._directory}/"
        self._context = context
        self._rows = Snapshots(context.root / "snapshots.db")
        self._options = _options(config)
        self._volatile = config.volatile
        self._roots: dict[int, tuple[int, int, int, int]] = {}  # of committed ones, which never change
        self._trash = Trash("overlayfs", self._erase)
        for name in self._rows.strays(self._directory):
            self._trash.add(name)

    def stat(self, name: str) -> SnapshotInfo:
        return self._rows.get(name).info()

    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        return self._rows.update(name, labels).info()

    def usage(self, name: str) -> tuple[int, int]:
        row = self._rows.get(name)
        if row.bytes >= 0:
            return row.bytes, row.inodes
        try:
            fd = os.open(self._fs(row.number), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # a view of one layer has no directory of its own
            return 0, 0
        try:
            found = usage(fd)
        finally:
            os.close(fd)
        if row.kind == "committed":
            self._rows.measured(row.number, found)
        return found

    def mounts(self, key: str) -> tuple[Mount, ...]:
        row = self._rows.get(key)
        if row.kind == "committed":
            raise FailedPrecondition(f'snapshot "{key}"', "is committed", "view it, or prepare a child")
        return self._mounts(row)

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        _plain(key, options)
        with self._rows.prepare(key, parent, options.labels, "active", durable=options.durable) as row:
            self._make(row, work=True)
        return self._mounts(row)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        _plain(key, options)
        with self._rows.prepare(key, parent, options.labels, "view") as row:
            if not row.lowers:
                self._make(row, work=False)
        return self._mounts(row)

    def commit(self, name: str, key: str, labels: Labels) -> None:
        self._rows.commit(name, key, {UNPACK: None, **labels})

    def remove(self, name: str) -> None:
        row = self._rows.remove(name)
        if row is None:
            return
        self._roots.pop(row.number, None)
        self._trash.add(str(row.number))

    def walk(self) -> Iterator[SnapshotInfo]:
        return (row.info() for row in self._rows.walk())

    def cleanup(self) -> int:
        self._trash.empty()
        return self._trash.freed() + sum(self._erase(name) for name in self._rows.strays(self._directory))

    def close(self) -> None:
        self._trash.empty()
        self._rows.close()

    # directories

    def _fs(self, number: int) -> str:
        return f"{self._prefix}{number}/fs"

    def _make(self, row: Row, *, work: bool) -> None:
        """The directories, before their row is committed: a durable commit's fsync takes them to the disk's journal as well."""
        directory = f"{self._prefix}{row.number}"
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:  # a crash before the commit left one, and the number with it
            self._erase(str(row.number))
            os.mkdir(directory, 0o700)
        try:
            os.mkdir(f"{directory}/fs", 0o755)
            if row.lowers:
                mode, uid, gid, mtime = self._root_of(row.lowers[0])
                if uid or gid:
                    os.chown(f"{directory}/fs", uid, gid)
                if mode != 0o755:
                    os.chmod(f"{directory}/fs", mode)
                os.utime(f"{directory}/fs", ns=(mtime, mtime))
            if work:
                os.mkdir(f"{directory}/work", 0o711)
        except BaseException:
            self._erase(str(row.number))
            raise

    def _root_of(self, number: int) -> tuple[int, int, int, int]:
        """(mode, uid, gid, mtime) of a root directory: what a merged tree's root looks like is the upper directory's matter."""
        known = self._roots.get(number)
        if known is None:
            found = os.stat(self._fs(number))
            known = self._roots[number] = (
                found.st_mode & 0o7777,
                found.st_uid,
                found.st_gid,
                found.st_mtime_ns,
            )
        return known

    def _mounts(self, row: Row) -> tuple[Mount, ...]:
        fs = self._fs(row.number)
        if not row.lowers:
            return (Mount("bind", fs, "", ("rbind", "rw" if row.kind == "active" else "ro")),)
        lowers = [self._fs(number) for number in row.lowers]
        if row.kind == "active":
            options = (f"lowerdir={':'.join(lowers)}", f"upperdir={fs}", f"workdir={self._prefix}{row.number}/work")
            extra = ("volatile",) if self._volatile and UNPACK not in row.labels else ()
            return (Mount("overlay", "overlay", "", (*options, *self._options, *extra)),)
        if len(lowers) == 1:
            return (Mount("bind", lowers[0], "", ("rbind", "ro")),)
        return (Mount("overlay", "overlay", "", ("ro", f"lowerdir={':'.join(lowers)}", *self._options)),)

    def _erase(self, name: str) -> int:
        """Deletes a directory; the bytes freed. What can't be deleted now, cleanup finds again."""
        if self._erase_empty(f"{self._prefix}{name}"):
            return 0
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        freed = 0
        try:
            with suppress(OSError):
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    freed = usage(inner)[0]
                finally:
                    os.close(inner)
            with suppress(OSError):
                remove_tree(fd, name.encode())
        finally:
            os.close(fd)
        return freed

    @staticmethod
    def _erase_empty(directory: str) -> bool:
        """Deletes that of a container that wrote nothing, in a tenth of the time; False when there is something in it. work/work
        is made by the kernel's mount."""
        try:
            for name in ("/work/work", "/work", "/fs", ""):
                with suppress(FileNotFoundError):
                    os.rmdir(directory + name)
        except OSError:
            return False
        return True


def _plain(key: str, options: SnapshotOptions) -> None:
    if not key or len(key) > 1024 or "\0" in key:
        raise Invalid(f'snapshot "{key[:100]}"', "a key has 1 to 1024 characters")
    if options.quota:
        raise Invalid(f'snapshot "{key}"', "overlayfs keeps no quota", "choose a snapshotter with that capability")
    if options.idmap.uids or options.idmap.gids:
        raise Invalid(f'snapshot "{key}"', "overlayfs can't remap ids", "choose a snapshotter with that capability")


def _options(config: OverlayConfig) -> tuple[str, ...]:
    chosen: list[str] = []
    confined = userns.confined()
    for name, wanted in (("index", config.index), ("metacopy", config.metacopy), ("redirect_dir", config.redirect_dir)):
        if confined and name != "index":
            continue  # both are off with userxattr, and must not be named beside it
        # Said either way, since a module parameter may set another default, and left out where the kernel is too old to know it.
        if Path(f"/sys/module/overlay/parameters/{name}").exists():
            chosen.append(f"{name}={'on' if wanted else 'off'}")
    if config.xino:
        chosen.append(f"xino={config.xino}")
    if confined:
        chosen.append("userxattr")  # trusted.* is the initial user namespace's alone
    return tuple(chosen)
