"""The snapshotter: rows by ``wherry.kit.snapshots.rows``, one directory a row."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from wherry.api import AlreadyExists, Context, IdMap, Invalid, Mount, NotFound, SnapshotOptions
from wherry.kit.files import syncfs
from wherry.kit.snapshots.directories import DIRECTORY, DirectorySnapshotter
from wherry.kit.snapshots.rows import MountOptions, SnapshotRow
from wherry_plugins.snapshotter.vfs import chowns

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.vfs import VfsConfig

_NEW = "new-"


class VfsSnapshotter(DirectorySnapshotter):
    """Implements ``wherry.api.Snapshotter``."""

    def __init__(self, config: VfsConfig, context: Context) -> None:
        super().__init__("vfs", context.root)
        self._context = context
        self._reflink = config.reflink
        self._chowns = chowns()

    def usage(self, name: str) -> tuple[int, int]:
        """What this copy has more than its parent's. On disk it takes all of it, unless data is shared by reflink."""
        row = self.rows.get(name)
        size, inodes = self._whole(row)
        if row.parent:
            above = self._whole(self.rows.get(row.parent))
            size, inodes = max(0, size - above[0]), max(0, inodes - above[1])
        return size, inodes

    def _whole(self, row: SnapshotRow) -> tuple[int, int]:
        if row.kind == "view" and row.parent:
            return self._whole(self.rows.get(row.parent))  # it shows its parent's directory
        if row.bytes >= 0:
            return row.bytes, row.inodes
        return self.measured(row, self._path(row.number))

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self.check(key, options)
        with suppress(NotFound):
            self.rows.get(key)
            raise AlreadyExists(f'snapshot "{key}"', "the key is taken")
        temporary = f"{_NEW}{secrets.token_hex(8)}"
        self.making.add(temporary)
        # Open before the first write: an error of a write-back that happens meanwhile is told to each descriptor once.
        disk = os.open(self.directory, DIRECTORY)
        try:
            path = f"{self.directory}/{temporary}"
            os.mkdir(path, 0o755)
            if parent:
                self._copy(key, parent, temporary, options.idmap)
                if options.durable:
                    syncfs(disk)  # a copy may be as large as an image, and its row says that all of it is there
            extra = MountOptions(IdMap() if self._chowns else options.idmap).pack()
            with self.rows.prepare(key, parent, options.labels, "active", extra, durable=options.durable) as row:
                self.erase(str(row.number))  # a crash before the commit may have left one
                os.rename(path, self._path(row.number))
        except BaseException:
            self.erase(temporary)
            raise
        finally:
            os.close(disk)
            self.making.discard(temporary)
        return self.mounts_of(row)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self.check(key, options)
        if self._chowns and options.idmap.uids:
            raise Invalid(f'snapshot "{key}"', "a view is no copy whose owners could be changed", "prepare it instead")
        extra = MountOptions(options.idmap).pack()
        with self.rows.prepare(key, parent, options.labels, "view", extra, durable=options.durable) as row:
            if not row.lowers:
                self.erase(str(row.number))
                os.mkdir(self._path(row.number), 0o755)
        return self.mounts_of(row)

    def check(self, key: str, options: SnapshotOptions) -> None:
        super().check(key, options)
        if (
            (options.idmap.uids or options.idmap.gids)
            and not self._chowns
            and "mount.idmapped" not in self._context.features
        ):
            raise Invalid(f'snapshot "{key}"', "this kernel has no idmapped mounts, so vfs can't remap ids")

    def _path(self, number: int) -> str:
        return f"{self.prefix}{number}"

    def _copy(self, key: str, parent: str, target: str, idmap: IdMap) -> None:
        """Outside any transaction, for it may take long; whether the parent is still there is asked again with the row."""
        row = self.rows.get(parent)
        if row.kind != "committed":
            raise NotFound(f'snapshot "{parent}"', f'cannot be the parent of "{key}": it is not committed')
        owners = idmap if self._chowns else IdMap()
        mounts = (Mount("bind", str(self.directory), "", ("bind", "rw")),)
        try:
            self._context.workers.copy(mounts, str(row.number), target, owners, reflink=self._reflink)
        except FileNotFoundError:
            self.rows.get(parent)  # NotFound when it went meanwhile
            raise

    def mounts_of(self, row: SnapshotRow) -> tuple[Mount, ...]:
        number = row.lowers[0] if row.kind == "view" and row.lowers else row.number
        options = ("rbind", "rw" if row.kind == "active" else "ro")
        return (Mount("bind", self._path(number), "", options, MountOptions.unpack(row.extra).idmap),)
