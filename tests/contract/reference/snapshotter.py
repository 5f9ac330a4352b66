"""Every snapshot is a whole copy of its parent's tree, made by cp(1)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from contract.reference.state import NoConfig, State
from wherry.api import (
    AlreadyExists,
    ApartLayer,
    Capabilities,
    Context,
    FailedPrecondition,
    InUse,
    Labels,
    Mount,
    NotFound,
    Registration,
    SnapshotInfo,
    SnapshotOptions,
)


def measure(directory: Path) -> tuple[int, int]:
    """(bytes, inodes) below directory, itself included."""
    seen: dict[int, int] = {}
    for path, directories, files in os.walk(directory):
        for name in (".", *directories, *files):
            status = os.lstat(f"{path}/{name}")
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values()), len(seen)


def merge(change: Path, target: Path) -> None:
    for path in change.iterdir():
        below, status = target / path.name, path.lstat()
        there = below.is_dir() and not below.is_symlink()
        opaque = "trusted.overlay.opaque" in os.listxattr(path, follow_symlinks=False)
        if there and (opaque or not stat.S_ISDIR(status.st_mode)):
            shutil.rmtree(below)
        elif not there:
            below.unlink(missing_ok=True)
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            continue
        if stat.S_ISDIR(status.st_mode):
            below.mkdir(exist_ok=True)
            merge(path, below)
        else:
            subprocess.run(["cp", "-a", path, below], check=True)


class CopySnapshotter:
    def __init__(self, config: NoConfig, context: Context) -> None:
        self.context = context
        self.state = State(context.root)
        for row in self.rows.values():
            row["marked"] = False

    @property
    def rows(self) -> dict[str, Any]:
        return self.state.table("snapshots")

    def row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = self.rows.get(name, {"marked": True})
        if row.get("marked"):
            raise NotFound(f"snapshot {name!r}", "no such snapshot")
        return row

    def check_free(self, name: str) -> None:
        if self.rows.get(name, {}).get("marked"):
            raise InUse(f"snapshot {name!r}", "is about to be deleted")
        if name in self.rows:
            raise AlreadyExists(f"snapshot {name!r}", "the name is taken")

    def directory(self, name: str) -> Path:
        return self.context.root / str(self.row(name)["number"])

    def stat(self, name: str) -> SnapshotInfo:
        row = self.row(name)
        return SnapshotInfo(row["kind"], name, row["parent"], {**row["labels"]}, row["created"], row["updated"])

    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        with self.state.change():
            row = self.row(name)
            row["labels"] = {key: text for key, text in {**row["labels"], **labels}.items() if text is not None}
            row["updated"] = time.time_ns()
            return self.stat(name)

    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        with self.state.change():
            for name in names:
                self.row(name)
            for name in names:
                self.update(name, labels)

    def usage(self, name: str) -> tuple[int, int]:
        size, inodes = measure(self.directory(name))
        parent = self.row(name)["parent"]
        if parent:
            below, below_inodes = measure(self.directory(parent))
            return max(0, size - below), max(0, inodes - below_inodes)
        return size, inodes

    def mounts(self, key: str) -> tuple[Mount, ...]:
        row = self.row(key)
        if row["kind"] == "committed":
            raise FailedPrecondition(f"snapshot {key!r}", "committed")
        return (Mount("bind", str(self.directory(key)), "", ("rbind", "ro" if row["kind"] == "view" else "rw")),)

    def copy(self, parent: str, target: Path) -> None:
        if parent:
            subprocess.run(["cp", "-a", self.directory(parent), target], check=True)
        else:
            target.mkdir()
            target.chmod(0o755)

    def check_new(self, key: str, parent: str) -> None:
        self.check_free(key)
        if parent and self.row(parent)["kind"] != "committed":
            raise NotFound(f"parent {parent!r}", "no committed snapshot of that name")

    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        with self.state.change():
            self.check_new(key, parent)
            number = self.state.tables["count"] = int(self.state.tables.get("count", 0)) + 1
            self.copy(parent, self.context.root / str(number))
            now = time.time_ns()
            self.rows[key] = {
                "kind": kind, "parent": parent, "number": number, "labels": dict(options.labels),
                "created": now, "updated": now,
            }  # fmt: skip
            return self.mounts(key)

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        return self.make("active", key, parent, options)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        return self.make("view", key, parent, options)

    def commit(self, name: str, key: str, labels: Labels) -> None:
        with self.state.change():
            row = self.row(key)
            if row["kind"] != "active":
                raise FailedPrecondition(f"snapshot {key!r}", f"is {row['kind']}, not active")
            self.check_free(name)
            del self.rows[key]
            self.rows[name] = {
                **row,
                "kind": "committed",
                "labels": {**row["labels"], **labels},
                "updated": time.time_ns(),
            }

    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        with self.state.change():
            row = self.row(key)
            if row["kind"] != "active" or row["parent"]:
                raise FailedPrecondition(f"snapshot {key!r}", "is not active, or has a parent")
            if self.row(parent)["kind"] != "committed":
                raise NotFound(f"parent {parent!r}", "no committed snapshot of that name")
            own = self.directory(key)
            change = own.with_name(f"{own.name}-change")
            own.rename(change)
            self.copy(parent, own)
            merge(change, own)
            root = change if layer.root else self.directory(parent)
            os.chown(own, root.stat().st_uid, root.stat().st_gid)
            shutil.copystat(root, own)
            shutil.rmtree(change)
            row["parent"] = parent
            return self.mounts(key)

    def children(self, name: str) -> list[str]:
        return [child for child, row in self.rows.items() if row["parent"] == name]

    def remove(self, name: str) -> None:
        with self.state.change():
            if name not in self.rows:
                return
            if children := self.children(name):
                raise InUse(f"snapshot {name!r}", f"{children[0]!r} is made from it")
            shutil.rmtree(self.context.root / str(self.rows.pop(name)["number"]))

    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        with self.state.change():
            marked: list[str] = []
            while True:
                more = [
                    name
                    for name in self.rows
                    if name in names and name not in marked and set(self.children(name)) <= {*marked}
                ]
                if not more:
                    break
                marked += more
            for name in marked:
                self.rows[name]["marked"] = True
            return tuple(marked)

    def unmark(self, names: Collection[str]) -> None:
        with self.state.change():
            for name in names:
                while name in self.rows:
                    self.rows[name]["marked"] = False
                    name = self.rows[name]["parent"]

    def sweep(self) -> tuple[str, ...]:
        with self.state.change():
            gone = [name for name, row in self.rows.items() if row.get("marked")]
            for name in gone:
                shutil.rmtree(self.context.root / str(self.rows.pop(name)["number"]))
            return tuple(gone)

    def walk(self) -> Iterator[SnapshotInfo]:
        with self.state.lock:
            return iter([self.stat(name) for name, row in self.rows.items() if not row.get("marked")])

    def cleanup(self) -> int:
        return 0


def registration(driver: type[CopySnapshotter] = CopySnapshotter) -> Registration[NoConfig, CopySnapshotter]:
    able = Capabilities(frozenset({"rebase"}))
    return Registration(id="reference", config=NoConfig, init=driver, capabilities=lambda config, context: able)
