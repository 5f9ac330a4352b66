"""What snapshotters have in common that keep one directory a snapshot: rows, names, marks, and directories that nobody needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from wherry.errors import FailedPrecondition, Invalid
from wherry.interfaces.common import Labels, Mount
from wherry.interfaces.snapshotter import SnapshotInfo, SnapshotOptions
from wherry.kit.snapshots.rows import SnapshotRow, Snapshots
from wherry.kit.snapshots.trash import Trash
from wherry.layers.paths import remove as remove_tree
from wherry.layers.usage import usage

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectorySnapshotter:
    """The part of ``wherry.api.Snapshotter`` that rows answer. ``<root>/snapshots/<number>`` belongs to the row of that number.

    A driver adds prepare, view, usage and ``mounts_of``. remove is one commit, and the directory goes a moment later, off the
    path of whoever removes a container.
    """

    def __init__(self, name: str, root: Path) -> None:
        self._name = name
        self.directory = root / "snapshots"
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.prefix = f"{self.directory}/"
        self.rows = Snapshots(root / "snapshots.db")
        self.making: set[str] = set()  # directories without a row yet
        self._trash = Trash(name, self._discard)
        for stray in self.rows.strays(self.directory):
            self._trash.add(stray)

    def stat(self, name: str) -> SnapshotInfo:
        return self.rows.get(name).info()

    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        return self.rows.update(name, labels).info()

    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        self.rows.relabel(names, labels)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        row = self.rows.get(key)
        if row.kind == "committed":
            raise FailedPrecondition(f'snapshot "{key}"', "is committed", "view it, or prepare a child")
        return self.mounts_of(row)

    def commit(self, name: str, key: str, labels: Labels) -> None:
        self.rows.commit(name, key, labels)

    def remove(self, name: str) -> None:
        row = self.rows.remove(name)
        if row is not None:
            self._gone(row)

    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        return self.rows.mark(names)

    def unmark(self, names: Collection[str]) -> None:
        self.rows.unmark(names)

    def sweep(self) -> tuple[str, ...]:
        rows = self.rows.sweep()
        for row in rows:
            self._gone(row)
        return tuple(row.name for row in rows)

    def walk(self) -> Iterator[SnapshotInfo]:
        return (row.info() for row in self.rows.walk())

    def cleanup(self) -> int:
        self._trash.empty()
        strays = [name for name in self.rows.strays(self.directory) if name not in self.making]
        return self._trash.freed() + sum(self.erase(name) for name in strays)

    def close(self) -> None:
        self._trash.empty()
        self.rows.close()

    # for drivers

    def mounts_of(self, row: SnapshotRow) -> tuple[Mount, ...]:
        raise AssertionError("a driver says what its mounts are")

    def measured(self, row: SnapshotRow, path: str) -> tuple[int, int]:
        """(bytes, inodes) of the row's tree at path, counted once when it is committed. FileNotFoundError."""
        fd = os.open(path, DIRECTORY)
        try:
            found = usage(fd)
        finally:
            os.close(fd)
        if row.kind == "committed":
            self.rows.measured(row.number, found)
        return found

    def _gone(self, row: SnapshotRow) -> None:
        """Its row went."""
        self._trash.add(str(row.number))

    def check(self, key: str, options: SnapshotOptions) -> None:
        """Invalid for a key that is none, and for a quota."""
        if not key or len(key) > 1024 or "\0" in key:
            raise Invalid(f'snapshot "{key[:100]}"', "a key has 1 to 1024 characters")
        if options.quota:
            raise Invalid(
                f'snapshot "{key}"', f"{self._name} keeps no quota", "choose a snapshotter with that capability"
            )

    def _discard(self, name: str) -> int:
        """For the trash: what is done with a directory that nobody needs; the bytes freed."""
        return self.erase(name)

    def erase(self, name: str) -> int:
        """Deletes a directory, if it is there; the bytes freed. What can't be deleted now, cleanup finds again."""
        try:
            fd = os.open(self.directory, DIRECTORY)
        except FileNotFoundError:
            return 0
        freed = 0
        try:
            with suppress(OSError):
                inner = os.open(name, DIRECTORY, dir_fd=fd)
                try:
                    freed = usage(inner)[0]
                finally:
                    os.close(inner)
            with suppress(OSError):
                remove_tree(fd, name.encode())
        finally:
            os.close(fd)
        return freed


__all__ = ["DIRECTORY", "DirectorySnapshotter"]
