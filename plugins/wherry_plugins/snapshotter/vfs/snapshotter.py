"""The snapshotter: rows by ``wherry.kit.snapshots.rows``, one directory a row."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from wherry.api import AlreadyExists, Context, IdMap, Invalid, Mount, NotFound, SnapshotOptions
from wherry.kit.snapshots.directories import DIRECTORY, DirectorySnapshotter
from wherry.kit.snapshots.rows import SnapshotRow, pack_idmap, unpack_idmap
from wherry.layers.mounts import syncfs
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
        row = self._rows.get(name)
        size, inodes = self._whole(row)
        if row.parent:
            above = self._whole(self._rows.get(row.parent))
            size, inodes = max(0, size - above[0]), max(0, inodes - above[1])
        return size, inodes

    def _whole(self, row: SnapshotRow) -> tuple[int, int]:
        if row.kind == "view" and row.parent:
            return self._whole(self._rows.get(row.parent))  # it shows its parent's directory
        if row.bytes >= 0:
            return row.bytes, row.inodes
        return self._measured(row, self._path(row.number))

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self._plain(key, options)
        with suppress(NotFound):
            self._rows.get(key)
            raise AlreadyExists(f'snapshot "{key}"', "the key is taken")
        temporary = f"{_NEW}{secrets.token_hex(8)}"
        self._making.add(temporary)
        # Open before the first write: an error of a write-back that happens meanwhile is told to each descriptor once.
        disk = os.open(self._directory, DIRECTORY)
        try:
            path = f"{self._directory}/{temporary}"
            os.mkdir(path, 0o755)
            if parent:
                self._copy(key, parent, temporary, options.idmap)
                if options.durable:
                    syncfs(disk)  # a copy may be as large as an image, and its row says that all of it is there
            extra = pack_idmap(IdMap() if self._chowns else options.idmap)
            with self._rows.prepare(key, parent, options.labels, "active", extra, durable=options.durable) as row:
                self._erase(str(row.number))  # a crash before the commit may have left one
                os.rename(path, self._path(row.number))
        except BaseException:
            self._erase(temporary)
            raise
        finally:
            os.close(disk)
            self._making.discard(temporary)
        return self._mounts(row)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self._plain(key, options)
        if self._chowns and options.idmap.uids:
            raise Invalid(f'snapshot "{key}"', "a view is no copy whose owners could be changed", "prepare it instead")
        extra = pack_idmap(options.idmap)
        with self._rows.prepare(key, parent, options.labels, "view", extra, durable=options.durable) as row:
            if not row.lowers:
                self._erase(str(row.number))
                os.mkdir(self._path(row.number), 0o755)
        return self._mounts(row)

    def _plain(self, key: str, options: SnapshotOptions) -> None:
        super()._plain(key, options)
        if (
            (options.idmap.uids or options.idmap.gids)
            and not self._chowns
            and "mount.idmapped" not in self._context.features
        ):
            raise Invalid(f'snapshot "{key}"', "this kernel has no idmapped mounts, so vfs can't remap ids")

    def _path(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _copy(self, key: str, parent: str, target: str, idmap: IdMap) -> None:
        """Outside any transaction, for it may take long; whether the parent is still there is asked again with the row."""
        row = self._rows.get(parent)
        if row.kind != "committed":
            raise NotFound(f'snapshot "{parent}"', f'cannot be the parent of "{key}": it is not committed')
        owners = idmap if self._chowns else IdMap()
        mounts = (Mount("bind", str(self._directory), "", ("bind", "rw")),)
        try:
            self._context.workers.copy(mounts, str(row.number), target, owners, reflink=self._reflink)
        except FileNotFoundError:
            self._rows.get(parent)  # NotFound when it went meanwhile
            raise

    def _mounts(self, row: SnapshotRow) -> tuple[Mount, ...]:
        number = row.lowers[0] if row.kind == "view" and row.lowers else row.number
        options = ("rbind", "rw" if row.kind == "active" else "ro")
        return (Mount("bind", self._path(number), "", options, unpack_idmap(row.extra)),)
