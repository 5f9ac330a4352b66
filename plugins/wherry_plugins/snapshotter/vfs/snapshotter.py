"""The snapshotter: rows by ``wherry.layers.snapshots``, one directory a row."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from wherry.api import (
    AlreadyExists,
    Context,
    FailedPrecondition,
    IdMap,
    Invalid,
    Labels,
    Mount,
    NotFound,
    SnapshotInfo,
    SnapshotOptions,
)
from wherry.layers.paths import remove as remove_tree
from wherry.layers.snapshots import Row, Snapshots
from wherry.layers.trash import Trash
from wherry.layers.usage import usage
from wherry_plugins.snapshotter.vfs.copy import TreeCopy

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.vfs import VfsConfig

_NEW = "new-"


class VfsSnapshotter:
    """Implements ``wherry.api.Snapshotter``."""

    def __init__(self, config: VfsConfig, context: Context) -> None:
        self._directory = context.root / "snapshots"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._context = context
        self._reflink = config.reflink
        self._rows = Snapshots(context.root / "snapshots.db")
        self._copying: set[str] = set()
        self._trash = Trash("vfs", self._erase)
        for name in self._rows.strays(self._directory):
            self._trash.add(name)

    def stat(self, name: str) -> SnapshotInfo:
        return self._rows.get(name).info()

    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        return self._rows.update(name, labels).info()

    def usage(self, name: str) -> tuple[int, int]:
        """What this copy has more than its parent's. On disk it takes all of it, unless data is shared by reflink."""
        row = self._rows.get(name)
        size, inodes = self._whole(row)
        if row.parent:
            above = self._whole(self._rows.get(row.parent))
            size, inodes = max(0, size - above[0]), max(0, inodes - above[1])
        return size, inodes

    def _whole(self, row: Row) -> tuple[int, int]:
        if row.kind == "view" and row.parent:
            return self._whole(self._rows.get(row.parent))  # it shows its parent's directory
        if row.bytes >= 0:
            return row.bytes, row.inodes
        fd = os.open(self._path(row.number), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        self._check(key, options)
        with suppress(NotFound):
            self._rows.get(key)
            raise AlreadyExists(f'snapshot "{key}"', "the key is taken")
        temporary = f"{_NEW}{secrets.token_hex(8)}"
        self._copying.add(temporary)
        try:
            path = f"{self._directory}/{temporary}"
            os.mkdir(path, 0o755)
            if parent:
                self._copy(key, parent, path)
            with self._rows.prepare(key, parent, options.labels, "active", _pack(options.idmap)) as row:
                self._erase(str(row.number))  # a crash before the commit may have left one
                os.rename(path, self._path(row.number))
        except BaseException:
            self._erase(temporary)
            raise
        finally:
            self._copying.discard(temporary)
        return self._mounts(row)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self._check(key, options)
        with self._rows.prepare(key, parent, options.labels, "view", _pack(options.idmap)) as row:
            if not row.lowers:
                self._erase(str(row.number))
                os.mkdir(self._path(row.number), 0o755)
        return self._mounts(row)

    def commit(self, name: str, key: str, labels: Labels) -> None:
        self._rows.commit(name, key, labels)

    def remove(self, name: str) -> None:
        row = self._rows.remove(name)
        if row is not None:
            self._trash.add(str(row.number))

    def walk(self) -> Iterator[SnapshotInfo]:
        return (row.info() for row in self._rows.walk())

    def cleanup(self) -> int:
        self._trash.empty()
        strays = [name for name in self._rows.strays(self._directory) if name not in self._copying]
        return self._trash.freed() + sum(self._erase(name) for name in strays)

    def close(self) -> None:
        self._trash.empty()
        self._rows.close()

    def _check(self, key: str, options: SnapshotOptions) -> None:
        if not key or len(key) > 1024 or "\0" in key:
            raise Invalid(f'snapshot "{key[:100]}"', "a key has 1 to 1024 characters")
        if options.quota:
            raise Invalid(f'snapshot "{key}"', "vfs keeps no quota", "choose a snapshotter with that capability")
        if (options.idmap.uids or options.idmap.gids) and "mount.idmapped" not in self._context.features:
            raise Invalid(f'snapshot "{key}"', "this kernel has no idmapped mounts, so vfs can't remap ids")

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number}"

    def _copy(self, key: str, parent: str, target: str) -> None:
        """Outside any transaction, for it may take long; whether the parent is still there is asked again with the row."""
        row = self._rows.get(parent)
        if row.kind != "committed":
            raise NotFound(f'snapshot "{parent}"', f'cannot be the parent of "{key}": it is not committed')
        copy = TreeCopy(reflink=self._reflink, checkpoint=self._context.checkpoint)
        try:
            copy.run(self._path(row.number), target)
        except FileNotFoundError:
            self._rows.get(parent)  # NotFound when it went meanwhile
            raise

    def _mounts(self, row: Row) -> tuple[Mount, ...]:
        number = row.lowers[0] if row.kind == "view" and row.lowers else row.number
        options = ("rbind", "rw" if row.kind == "active" else "ro")
        return (Mount("bind", self._path(number), "", options, _unpack(row.extra)),)

    def _erase(self, name: str) -> int:
        """Deletes a directory, if it is there; the bytes freed. What can't be deleted now, cleanup finds again."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        freed = 0
        try:
            with suppress(OSError):
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    freed = usage(inner)[0]
                finally:
                    os.close(inner)
                remove_tree(fd, name.encode())
        finally:
            os.close(fd)
        return freed


def _pack(idmap: IdMap) -> str:
    """An id map as a row keeps it: the files keep their ids, the mount shows others."""
    return json.dumps([idmap.uids, idmap.gids]) if idmap.uids or idmap.gids else ""


def _unpack(text: str) -> IdMap:
    if not text:
        return IdMap()
    uids, gids = json.loads(text)
    return IdMap(tuple((a, b, c) for a, b, c in uids), tuple((a, b, c) for a, b, c in gids))
