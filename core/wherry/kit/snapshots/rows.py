"""The rows of a snapshotter: names, kinds, parents and labels, in a database that the driver keeps under its root.

overlayfs and vfs stand on it, and a snapshotter of one's own may. A row has a number that is never used again; the driver
names directories by it. Modelled on containerd's core/snapshots/storage.

    with rows.prepare(key, parent, labels, "active") as row:      # one transaction
        (root / str(row.number)).mkdir()                          # raising here leaves no row behind
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from wherry.errors import AlreadyExists, FailedPrecondition, InUse, NotFound
from wherry.interfaces.common import IdMap, Labels
from wherry.interfaces.snapshotter import SnapshotInfo
from wherry.kit.database import Database

SCHEMA = """
CREATE TABLE snapshots (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: a directory left behind is nobody's
    name    TEXT NOT NULL UNIQUE,
    kind    TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
    parent  INTEGER REFERENCES snapshots (number),
    labels  TEXT NOT NULL DEFAULT '{}',
    extra   TEXT NOT NULL DEFAULT '',           -- the driver's own
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    bytes   INTEGER NOT NULL DEFAULT -1,
    inodes  INTEGER NOT NULL DEFAULT -1,
    boot    TEXT NOT NULL DEFAULT '',           -- nobody waited for the disk: void under any other boot id
    deleting INTEGER NOT NULL DEFAULT 0         -- marked: counts as absent, its directory is still there
);
CREATE INDEX snapshots_parent ON snapshots (parent);
"""
VERSION = 2
UPGRADES = {
    1: "ALTER TABLE snapshots ADD COLUMN boot TEXT NOT NULL DEFAULT '';"
    " ALTER TABLE snapshots ADD COLUMN deleting INTEGER NOT NULL DEFAULT 0"
}
Kind = Literal["active", "view", "committed"]
_COLUMNS = "s.number, s.name, s.kind, s.parent, s.labels, s.extra, s.created, s.updated, s.bytes, s.inodes, p.name"
_SELECT = f"SELECT {_COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON p.number = s.parent"  # noqa: S608 - constants


class MountOptions(NamedTuple):
    """What a row remembers of ``SnapshotOptions`` for its mounts. idmap: the files keep their ids, the mount shows others."""

    idmap: IdMap = IdMap()
    volatile: bool | None = None

    def pack(self) -> str:
        """As a row's ``extra`` keeps it; "" for the defaults."""
        idmap = self.idmap
        return json.dumps([idmap.uids, idmap.gids, self.volatile]) if self != _DEFAULTS else ""

    @classmethod
    def unpack(cls, text: str) -> MountOptions:
        """What ``pack`` wrote."""
        if not text:
            return _DEFAULTS
        uids, gids, *volatile = json.loads(text)
        idmap = IdMap(tuple((a, b, c) for a, b, c in uids), tuple((a, b, c) for a, b, c in gids))
        return cls(idmap, volatile[0] if volatile else None)


_DEFAULTS = MountOptions()


#: Rows that are read at once, in a fraction of a millisecond.
_PIECE = 250


class SnapshotRow(NamedTuple):
    """One snapshot. number names its directory; lowers are the numbers of its parents, nearest first."""

    number: int
    name: str
    kind: Kind
    parent: str
    labels: Labels
    extra: str
    created: int
    updated: int
    bytes: int
    inodes: int
    lowers: tuple[int, ...] = ()

    def info(self) -> SnapshotInfo:
        return SnapshotInfo(self.kind, self.name, self.parent, self.labels, self.created, self.updated)


class Snapshots:
    """The rows. Every method is one transaction and safe from any thread."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path, SCHEMA, VERSION, UPGRADES)
        self._chains: dict[int, tuple[int, ...]] = {}  # committed snapshots never change: number -> itself and parents
        self._chains_lock = threading.Lock()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._recover()

    def _recover(self) -> None:
        """What was prepared without waiting for the disk and has seen a boot since may be half there: it goes. A mark that is
        found here was perhaps overtaken by a lease: only the next collection can tell."""
        void = "boot NOT IN ('', ?)"
        if self.database.row(f"SELECT 1 FROM snapshots WHERE deleting OR {void}", (self._boot,)):  # noqa: S608 - constants
            with self.database.write() as execute:
                execute(f"DELETE FROM snapshots WHERE {void}", (self._boot,))  # noqa: S608 - active or views: without children
                execute("UPDATE snapshots SET deleting = 0 WHERE deleting")

    def get(self, name: str) -> SnapshotRow:
        """NotFound when there is none."""
        row = self.database.row(f"{_SELECT} WHERE s.name = ? AND NOT s.deleting", (name,))
        if row is None:
            raise NotFound(f'snapshot "{name}"', "does not exist")
        return self._row(row)

    def walk(self) -> Iterator[SnapshotRow]:
        """In the order of their numbers. In pieces, so that a list of ten thousand keeps no prepare waiting for the database; a
        snapshot that is made or goes meanwhile may be among them or not."""
        sql = f"{_SELECT} WHERE s.number > ? AND NOT s.deleting ORDER BY s.number LIMIT {_PIECE}"
        last = -1
        while rows := self.database.all(sql, (last,)):
            for row in rows:
                yield self._row(row)
            last = rows[-1][0]

    def numbers(self) -> set[int]:
        """Every number in use."""
        return {number for (number,) in self.database.all("SELECT number FROM snapshots")}

    def strays(self, directory: Path) -> list[str]:
        """Names in directory that no row stands for, ready to be deleted: what a crash or an engine that ended left.

        A number that was rolled back is given out again, so a directory with such a name gets another first, while no
        snapshot can be prepared.
        """
        found = []
        with self.database.write(durable=False):
            used = self.numbers()
            for name in os.listdir(directory):
                if not name.isdecimal():
                    found.append(name)
                elif int(name) not in used:
                    found.append(f"old-{name}-{secrets.token_hex(4)}")
                    os.rename(directory / name, directory / found[-1])
        return found

    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotRow:
        """Sets the labels given; None removes one."""
        with self.database.write() as execute:
            merged = _dump(_merged(self.get(name).labels, labels))
            execute("UPDATE snapshots SET labels = ?, updated = ? WHERE name = ?", (merged, time.time_ns(), name))
            return self.get(name)

    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        """``update`` of several at once."""
        with self.database.write():
            for name in names:
                self.update(name, labels)

    @contextmanager
    def prepare(
        self, key: str, parent: str, labels: Labels, kind: Kind, extra: str = "", *, durable: bool = True
    ) -> Iterator[SnapshotRow]:
        """Inserts a row and commits it after the block; what the block raises takes it back."""
        now = time.time_ns()
        with self.database.write(durable=durable) as execute:
            above: tuple[int, ...] = ()
            sql = "SELECT name, number, kind, deleting FROM snapshots WHERE name IN (?, ?)"
            there = {name: rest for name, *rest in execute(sql, (key, parent)).fetchall()}
            if parent:
                number, state, deleting = there.get(parent, (0, "", True))
                if deleting:
                    raise NotFound(f'snapshot "{parent}"', f'cannot be the parent of "{key}": it does not exist')
                if state != "committed":
                    raise NotFound(f'snapshot "{parent}"', f'cannot be the parent of "{key}": it is not committed')
                above = self._chain(number)
            if key in there:
                _taken(key, "the key", deleting=there[key][2])
            boot = "" if durable else self._boot
            ((number,),) = execute(
                "INSERT INTO snapshots (name, kind, parent, labels, extra, created, updated, boot)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
                (key, kind, above[0] if above else None, _dump(labels), extra, now, now, boot),
            ).fetchall()
            yield SnapshotRow(number, key, kind, parent, labels, extra, now, now, -1, -1, above)

    @contextmanager
    def rebase(self, key: str, parent: str) -> Iterator[SnapshotRow]:
        """Gives an active snapshot that has no parent one, committed after the block. Not synced: the snapshot's own commit, which is,
        comes later in the same log."""
        with self.database.write(durable=False) as execute:
            row = self.get(key)
            if row.kind != "active" or row.parent:
                raise FailedPrecondition(f'snapshot "{key}"', "only an active one without a parent can be given one")
            above = self.get(parent)
            if above.kind != "committed":
                raise NotFound(f'snapshot "{parent}"', f'cannot be the parent of "{key}": it is not committed')
            execute("UPDATE snapshots SET parent = ? WHERE number = ?", (above.number, row.number))
            yield row._replace(parent=parent, lowers=(above.number, *above.lowers))

    def commit(self, name: str, key: str, labels: Labels) -> None:
        """active key -> committed name, with these labels alone. Synced to disk unless it was prepared otherwise."""
        unsynced = self.database.row("SELECT 1 FROM snapshots WHERE name = ? AND boot != ''", (key,))
        with self.database.write(durable=unsynced is None) as execute:
            row = self.get(key)
            if row.kind != "active":
                raise FailedPrecondition(f'snapshot "{key}"', f"is {row.kind}, only an active one can be committed")
            _free(execute, name, "the name")
            execute(
                "UPDATE snapshots SET name = ?, kind = 'committed', labels = ?, updated = ?, boot = '' WHERE number = ?",
                (name, _dump(labels), time.time_ns(), row.number),
            )

    def measured(self, number: int, usage: tuple[int, int]) -> None:
        """Keeps what a committed snapshot takes: (bytes, inodes)."""
        with self.database.write() as execute:
            execute("UPDATE snapshots SET bytes = ?, inodes = ? WHERE number = ?", (*usage, number))

    def remove(self, name: str) -> SnapshotRow | None:
        """Deletes the row and answers it, None when it was gone. InUse while it has children.

        Only a committed one's end is synced to disk: if that were taken back, a later look-up would find a layer whose files
        are gone. An active one that comes back after a power cut is removed again by whoever knows its container is gone.
        """
        # One that is not committed has no children.
        with self.database.write(durable=False) as execute:
            gone = execute(
                "DELETE FROM snapshots WHERE name = ? AND kind <> 'committed' RETURNING number, name, kind, parent, labels, extra,"
                " created, updated, bytes, inodes, (SELECT p.name FROM snapshots p WHERE p.number = parent)",
                (name,),
            ).fetchall()
        if gone:
            return self._row(gone[0], lowers=False)
        with self.database.write() as execute:
            found = execute(f"{_SELECT} WHERE s.name = ?", (name,)).fetchall()
            if not found:
                return None
            number = found[0][0]
            child = execute("SELECT name FROM snapshots WHERE parent = ? LIMIT 1", (number,)).fetchall()
            if child:
                raise InUse(f'snapshot "{name}"', f'is the parent of "{child[0][0]}"')
            execute("DELETE FROM snapshots WHERE number = ?", (number,))
            with self._chains_lock:
                self._chains.pop(number, None)
            return self._row(found[0], lowers=False)

    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        """These count as absent from now on, but for those that a snapshot stands on which is not among them; which do."""
        with self.database.write() as execute:
            rows = execute("SELECT number, parent, name FROM snapshots").fetchall()
            wanted = {number for number, _parent, name in rows if name in names}
            above = dict(row[:2] for row in rows)
            for number, parent in above.items():
                if number not in wanted:
                    while parent in wanted:  # and what it stands on in turn
                        wanted.discard(parent)
                        parent = above[parent]
            execute("CREATE TEMP TABLE IF NOT EXISTS marked (number INTEGER PRIMARY KEY)")
            execute("DELETE FROM marked")
            for number in wanted:
                execute("INSERT INTO marked VALUES (?)", (number,))
            execute("UPDATE snapshots SET deleting = 1 WHERE number IN (SELECT number FROM marked)")
            return tuple(name for number, _parent, name in rows if number in wanted)

    def unmark(self, names: Collection[str]) -> None:
        """These are there again, with what they stand on."""
        with self.database.write() as execute:
            for name in names:
                execute(
                    "WITH RECURSIVE up (number) AS (SELECT number FROM snapshots WHERE name = ? UNION SELECT s.parent"
                    " FROM snapshots s JOIN up ON s.number = up.number WHERE s.parent IS NOT NULL)"
                    " UPDATE snapshots SET deleting = 0 WHERE deleting AND number IN (SELECT number FROM up)",
                    (name,),
                )

    def sweep(self) -> list[SnapshotRow]:
        """Deletes the rows that are marked and answers them: whose directories may go now."""
        with self.database.write() as execute:
            found = [self._row(row, lowers=False) for row in execute(f"{_SELECT} WHERE s.deleting").fetchall()]
            execute("PRAGMA defer_foreign_keys = ON")  # parents and children go together
            execute("DELETE FROM snapshots WHERE deleting")
        with self._chains_lock:
            for row in found:
                self._chains.pop(row.number, None)
        return found

    def close(self) -> None:
        self.database.close()

    def _row(self, row: Any, *, lowers: bool = True) -> SnapshotRow:
        number, name, kind, parent, labels, extra, created, updated, size, inodes, above = row
        chain = self._chain(parent) if lowers and parent is not None else ()
        return SnapshotRow(
            number,
            name,
            cast(Kind, kind),
            above or "",
            json.loads(labels),
            extra,
            created,
            updated,
            size,
            inodes,
            chain,
        )

    def _chain(self, number: int) -> tuple[int, ...]:
        """number and its parents, nearest first. A parent can't go while a child is there, so the answer stays true."""
        with self._chains_lock:
            known = self._chains.get(number)
        if known is not None:
            return known
        chain = tuple(
            found
            for (found,) in self.database.all(
                "WITH RECURSIVE up (number, depth) AS (SELECT ?, 0 UNION ALL SELECT s.parent, up.depth + 1"
                " FROM snapshots s JOIN up ON s.number = up.number WHERE s.parent IS NOT NULL)"
                " SELECT number FROM up ORDER BY depth",
                (number,),
            )
        )
        with self._chains_lock:
            self._chains[number] = chain
        return chain


def _free(execute: Any, name: str, what: str) -> None:
    for (deleting,) in execute("SELECT deleting FROM snapshots WHERE name = ?", (name,)).fetchall():
        _taken(name, what, deleting=deleting)


def _taken(name: str, what: str, *, deleting: bool) -> None:
    if deleting:
        raise InUse(f'snapshot "{name}"', "is about to be deleted", "try again")
    raise AlreadyExists(f'snapshot "{name}"', f"{what} is taken")


def _merged(labels: Labels, changes: Mapping[str, str | None]) -> Labels:
    merged: dict[str, str | None] = {**labels, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def _dump(labels: Labels) -> str:
    return json.dumps(dict(labels), separators=(",", ":"), sort_keys=True) if labels else "{}"


__all__ = ["MountOptions", "SnapshotRow", "Snapshots"]
