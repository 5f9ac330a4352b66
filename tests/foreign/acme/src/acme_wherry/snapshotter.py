"""A snapshotter for any file system: each snapshot is a copy of its parent, by reflink where the disk can."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from wherry.api import (
    AlreadyExists,
    Capabilities,
    Context,
    FailedPrecondition,
    InUse,
    Invalid,
    Labels,
    Mount,
    NotFound,
    Registration,
    SnapshotInfo,
    SnapshotOptions,
    hookimpl,
)

_TABLE = """
CREATE TABLE IF NOT EXISTS snapshots (
    name TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, kind TEXT NOT NULL, parent TEXT NOT NULL, labels TEXT NOT NULL,
    created INTEGER NOT NULL, updated INTEGER NOT NULL, marked INTEGER NOT NULL DEFAULT 0
)"""


@frozen
class CopyConfig:
    """[plugin.snapshotter.copy] reflink: "auto", "always" or "never", as of cp(1)."""

    reflink: str = "auto"


class CopySnapshotter:
    """Implements ``wherry.api.Snapshotter``. One lock: copies are made one after the other."""

    def __init__(self, config: CopyConfig, context: Context) -> None:
        if config.reflink not in ("auto", "always", "never"):
            raise Invalid("reflink", f"{config.reflink!r} is none of auto, always, never")
        self._copy = ["cp", "--archive", f"--reflink={config.reflink}"]
        self._trees = context.root / "trees"
        self._trees.mkdir(exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(context.root / "copies.db", check_same_thread=False, isolation_level=None)
        self._db.execute(_TABLE)
        self._db.execute("UPDATE snapshots SET marked = 0")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _row(self, name: str) -> tuple[int, SnapshotInfo]:
        with self._lock:
            rows = self._db.execute(
                "SELECT number, kind, parent, labels, created, updated FROM snapshots WHERE name = ? AND NOT marked",
                (name,),
            ).fetchall()
        if not rows:
            raise NotFound(f"snapshot {name!r}", "no such snapshot")
        number, kind, parent, labels, created, updated = rows[0]
        return number, SnapshotInfo(kind, name, parent, json.loads(labels), created, updated)

    def _free(self, name: str) -> None:
        for (marked,) in self._db.execute("SELECT marked FROM snapshots WHERE name = ?", (name,)).fetchall():
            if marked:
                raise InUse(f"snapshot {name!r}", "is about to be deleted")
            raise AlreadyExists(f"snapshot {name!r}", "the name is taken")

    def _tree(self, number: int) -> Path:
        return self._trees / str(number)

    def stat(self, name: str) -> SnapshotInfo:
        return self._row(name)[1]

    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        self.relabel((name,), labels)
        return self.stat(name)

    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        with self._change():
            for name in names:
                merged = {**self.stat(name).labels, **labels}
                kept = {key: value for key, value in merged.items() if value is not None}
                self._db.execute(
                    "UPDATE snapshots SET labels = ?, updated = ? WHERE name = ?",
                    (json.dumps(kept), time.time_ns(), name),
                )

    def usage(self, name: str) -> tuple[int, int]:
        number, info = self._row(name)
        size, inodes = _measure(self._tree(number))
        if info.parent:
            below, below_inodes = _measure(self._tree(self._row(info.parent)[0]))
            size, inodes = max(0, size - below), max(0, inodes - below_inodes)
        return size, inodes

    def mounts(self, key: str) -> tuple[Mount, ...]:
        number, info = self._row(key)
        if info.kind == "committed":
            raise FailedPrecondition(f"snapshot {key!r}", "is committed", "prepare or view a child of it")
        return (Mount("bind", str(self._tree(number)), "", ("rbind", "ro" if info.kind == "view" else "rw")),)

    def _make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        if options.idmap.uids or options.quota:
            raise Invalid(f"snapshot {key!r}", "this snapshotter maps no ids and has no quota")
        with self._change():
            self._free(key)
            source = None
            if parent:
                number, info = self._row(parent)
                if info.kind != "committed":
                    raise NotFound(f"parent {parent!r}", f"is {info.kind}, not committed")
                source = self._tree(number)
            (last,) = self._db.execute("SELECT coalesce(max(number), 0) FROM snapshots").fetchone()
            target = self._tree(last + 1)
            shutil.rmtree(target, ignore_errors=True)  # of a prepare that was broken off
            if source is None:
                target.mkdir()
                target.chmod(0o755)
            else:
                subprocess.run([*self._copy, source, target], check=True)
            now = time.time_ns()
            self._db.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (key, last + 1, kind, parent, json.dumps(dict(options.labels)), now, now),
            )
        return self.mounts(key)

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        return self._make("active", key, parent, options)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        return self._make("view", key, parent, options)

    def commit(self, name: str, key: str, labels: Labels) -> None:
        with self._change():
            _, info = self._row(key)
            if info.kind != "active":
                raise FailedPrecondition(f"snapshot {key!r}", f"is {info.kind}, not active")
            self._free(name)
            self._db.execute(
                "UPDATE snapshots SET name = ?, kind = 'committed', labels = ?, updated = ? WHERE name = ?",
                (name, json.dumps({**info.labels, **labels}), time.time_ns(), key),
            )

    def remove(self, name: str) -> None:
        with self._change():
            found = self._db.execute("SELECT number FROM snapshots WHERE name = ?", (name,)).fetchall()
            if not found:
                return
            ((number,),) = found
            if child := self._db.execute("SELECT name FROM snapshots WHERE parent = ?", (name,)).fetchone():
                raise InUse(f"snapshot {name!r}", f"{child[0]!r} is made from it")
            self._db.execute("DELETE FROM snapshots WHERE name = ?", (name,))
            shutil.rmtree(self._tree(number))

    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        with self._change():
            rows = self._db.execute("SELECT name, parent FROM snapshots").fetchall()
            doomed = {name for name, _ in rows if name in names}
            while kept := {parent for name, parent in rows if parent in doomed and name not in doomed}:
                doomed -= kept
            self._db.executemany("UPDATE snapshots SET marked = 1 WHERE name = ?", [(name,) for name in doomed])
            return tuple(doomed)

    def unmark(self, names: Collection[str]) -> None:
        with self._change():
            wanted = list(names)
            for name in wanted:
                self._db.execute("UPDATE snapshots SET marked = 0 WHERE name = ?", (name,))
                wanted += [
                    up for (up,) in self._db.execute("SELECT parent FROM snapshots WHERE name = ?", (name,)) if up
                ]

    def sweep(self) -> tuple[str, ...]:
        with self._change():
            rows = self._db.execute("SELECT name, number FROM snapshots WHERE marked").fetchall()
            self._db.execute("DELETE FROM snapshots WHERE marked")
            for _, number in rows:
                shutil.rmtree(self._tree(number))
        return tuple(name for name, _ in rows)

    def walk(self) -> Iterator[SnapshotInfo]:
        with self._lock:
            names = [name for (name,) in self._db.execute("SELECT name FROM snapshots WHERE NOT marked")]
            return iter([self.stat(name) for name in names])

    def cleanup(self) -> int:
        """Trees without a row: what a crash left between the two."""
        freed = 0
        with self._lock:
            known = {str(number) for (number,) in self._db.execute("SELECT number FROM snapshots")}
            for tree in self._trees.iterdir():
                if tree.name not in known:
                    freed += _measure(tree)[0]
                    shutil.rmtree(tree)
        return freed


def _measure(tree: Path) -> tuple[int, int]:
    seen = {os.lstat(tree).st_ino: 0}
    for path, directories, files in os.walk(tree):
        for name in (*directories, *files):
            status = os.lstat(f"{path}/{name}")
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values()), len(seen)


@hookimpl
def wherry_snapshotter() -> Registration[CopyConfig, CopySnapshotter]:
    provides = Capabilities(provides=frozenset({"mounts"}))
    return Registration(
        id="copy", config=CopyConfig, init=CopySnapshotter, capabilities=lambda config, context: provides
    )
