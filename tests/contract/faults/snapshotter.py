"""Faulty snapshotters, one for each clause."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from attrs import evolve

from contract.faults import planted
from contract.reference.snapshotter import CopySnapshotter, measure
from contract.reference.state import NoConfig, State
from wherry.api import (
    AlreadyExists,
    ApartLayer,
    Context,
    Labels,
    Mount,
    NotFound,
    SnapshotInfo,
    SnapshotOptions,
)
from wherry.testing import SnapshotterContract

DEFAULT = SnapshotOptions()


def breaks(*clauses: str):
    return planted(SnapshotterContract, *clauses)


@breaks("prepare_makes_an_active_snapshot")
class ForgetsTheParent(CopySnapshotter):
    def stat(self, name: str) -> SnapshotInfo:
        return evolve(super().stat(name), parent="")


@breaks("prepare_makes_an_active_snapshot")
class OtherMountsLater(CopySnapshotter):
    def mounts(self, key: str) -> tuple[Mount, ...]:
        return tuple(evolve(mount, options=(*mount.options, f"x{time.time_ns()}")) for mount in super().mounts(key))


@breaks("view_is_read_only")
class WritableViews(CopySnapshotter):
    def mounts(self, key: str) -> tuple[Mount, ...]:
        return tuple(evolve(mount, options=("rbind", "rw")) for mount in super().mounts(key))


@breaks("view_of_nothing_is_empty")
class ViewNeedsAParent(CopySnapshotter):
    def view(self, key: str, parent: str, options: SnapshotOptions = DEFAULT) -> tuple[Mount, ...]:
        if not parent:
            raise NotFound("parent ''", "no such snapshot")
        return super().view(key, parent, options)


@breaks("commit_makes_a_committed_snapshot")
class CommitKeepsTheKey(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        row = dict(self.row(key))
        super().commit(name, key, labels)
        self.rows[key] = row


@breaks("mounts_are_for_active_and_view")
class MountsAnything(CopySnapshotter):
    def mounts(self, key: str) -> tuple[Mount, ...]:
        return (Mount("bind", str(self.directory(key)), "", ("rbind", "rw")),)


@breaks("only_active_snapshots_are_committed")
class CommitsViews(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        self.row(key)["kind"] = "active"
        super().commit(name, key, labels)


@breaks("taken_key_is_refused", "one_thread_gets_the_key")
class ReplacesSnapshots(CopySnapshotter):
    def check_new(self, key: str, parent: str) -> None:
        self.rows.pop(key, None)
        super().check_new(key, parent)


@breaks("one_thread_gets_the_key")
class ChecksBeforeItLocks(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        self.check_new(key, parent)
        time.sleep(0.02)
        with self.state.lock:
            self.rows.pop(key, None)
            return super().make(kind, key, parent, options)


@breaks("parent_must_exist")
class EmptyInsteadOfMissing(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        return super().make(kind, key, parent if parent in self.rows else "", options)


@breaks("parent_must_exist")
class KeepsTheOrphan(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        try:
            return super().make(kind, key, parent, options)
        except NotFound:
            super().make(kind, key, "", options)
            raise


@breaks("parent_must_be_committed")
class AnyParentWillDo(CopySnapshotter):
    def check_new(self, key: str, parent: str) -> None:
        if key in self.rows:
            raise AlreadyExists(f"snapshot {key!r}", "taken")
        if parent:
            self.row(parent)


@breaks("commit_to_a_taken_name")
class CommitOverwrites(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        self.row(key)
        self.rows.pop(name, None)
        super().commit(name, key, labels)


@breaks("commit_to_a_taken_name")
class FailedCommitLosesTheKey(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        try:
            super().commit(name, key, labels)
        except AlreadyExists:
            self.remove(key)
            raise


@breaks("commit_of_an_unknown_key")
class CommitsNothing(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        if key not in self.rows:
            self.prepare(key, "")
        super().commit(name, key, labels)


@breaks("missing_snapshot_is_not_found")
class MissingUsesNothing(CopySnapshotter):
    def usage(self, name: str) -> tuple[int, int]:
        return super().usage(name) if name in self.rows else (0, 0)


@breaks("hostile_key_leaves_the_directory_alone")
class KeysArePaths(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        if key.startswith(".."):
            (self.context.root / key).mkdir(parents=True)
        return super().make(kind, key, parent, options)


@breaks("remove_is_idempotent")
class RemovesOnce(CopySnapshotter):
    def remove(self, name: str) -> None:
        self.row(name)
        super().remove(name)


@breaks("parent_in_use_is_kept")
class RemovesParents(CopySnapshotter):
    def children(self, name: str) -> list[str]:
        return []


@breaks("parent_in_use_is_kept")
class OverlooksViews(CopySnapshotter):
    def children(self, name: str) -> list[str]:
        return [child for child in super().children(name) if self.rows[child]["kind"] != "view"]


@breaks("key_is_free_after_remove")
class KeepsTheDirectory(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        mounts = super().make(kind, key, parent, options)
        shared = self.context.root / f"kept-{key}"
        if not shared.exists():
            self.directory(key).rename(shared)
        else:
            shutil.rmtree(self.directory(key))
        self.directory(key).symlink_to(shared)
        return mounts

    def remove(self, name: str) -> None:
        self.rows.pop(name, None)


class LeavesTrees(CopySnapshotter):
    def remove(self, name: str) -> None:
        if name in self.rows and not self.children(name):
            with self.state.change():
                del self.rows[name]
        else:
            super().remove(name)


breaks("cleanup_frees_what_was_removed")(LeavesTrees)


@breaks("marked_snapshots_are_absent")
class ShowsWhatIsMarked(CopySnapshotter):
    def walk(self) -> Iterator[SnapshotInfo]:
        rows = [SnapshotInfo(row["kind"], name, row["parent"], {}, 10**19, 10**19) for name, row in self.rows.items()]
        return iter(rows)


@breaks("marked_snapshots_are_absent")
class BuildsOnWhatIsMarked(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        self.unmark([parent])
        return super().make(kind, key, parent, options)


@breaks("marked_names_are_in_use")
class GivesMarkedNamesAway(CopySnapshotter):
    def check_free(self, name: str) -> None:
        if self.rows.get(name, {}).get("marked"):
            del self.rows[name]
        super().check_free(name)


@breaks("mark_spares_what_others_stand_on")
class MarksParents(CopySnapshotter):
    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        found = tuple(name for name in self.rows if name in names)
        for name in found:
            self.rows[name]["marked"] = True
        return found


@breaks("unmark_brings_back")
class UnmarksNoParents(CopySnapshotter):
    def unmark(self, names: Collection[str]) -> None:
        for name in names:
            if name in self.rows:
                self.rows[name]["marked"] = False


@breaks("sweep_removes_what_is_marked")
class SweepsRowsOnly(CopySnapshotter):
    def sweep(self) -> tuple[str, ...]:
        gone = tuple(name for name, row in self.rows.items() if row.get("marked"))
        for name in gone:
            del self.rows[name]
        return gone


@breaks("sweep_removes_what_is_marked")
class DeletesWhileItMarks(CopySnapshotter):
    def mark(self, names: Collection[str]) -> tuple[str, ...]:
        found = super().mark(names)
        for name in found:
            shutil.rmtree(self.context.root / str(self.rows[name]["number"]))
        return found

    def sweep(self) -> tuple[str, ...]:
        return SweepsRowsOnly.sweep(self)  # type: ignore[arg-type]


@breaks("marks_end_with_a_restart")
class RemembersMarks(CopySnapshotter):
    def __init__(self, config: NoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.state = State(context.root)


@breaks("removal_from_the_top")
class RemovesTheMiddle(CopySnapshotter):
    def children(self, name: str) -> list[str]:
        return [child for child in super().children(name) if self.rows[child]["kind"] == "committed"]


@breaks("a_committed_name_is_no_key")
class CommittedNamesAreFree(CopySnapshotter):
    def check_free(self, name: str) -> None:
        if self.rows.get(name, {}).get("kind") == "committed":
            del self.rows[name]
        super().check_free(name)


@breaks("walk_lets_others_look")
class WalksUnderALock(CopySnapshotter):
    def walk(self) -> Iterator[SnapshotInfo]:
        for name in self.rows:  # changes while it is read
            yield self.stat(name)


@breaks("usage_of_a_view_is_none")
class ViewsWeighAll(CopySnapshotter):
    def usage(self, name: str) -> tuple[int, int]:
        return measure(self.directory(name)) if self.row(name)["kind"] == "view" else super().usage(name)


@breaks("walk_lists_all")
class WalksCommittedOnly(CopySnapshotter):
    def walk(self) -> Iterator[SnapshotInfo]:
        return (info for info in super().walk() if info.kind == "committed")


@breaks("labels_are_set_and_removed")
class ReplacesLabels(CopySnapshotter):
    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        self.row(name)["labels"] = {}
        return super().update(name, labels)


@breaks("relabel_changes_all_or_none")
class RelabelsOneByOne(CopySnapshotter):
    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        for name in names:
            self.update(name, labels)


@breaks("relabel_changes_all_or_none")
class RelabelsTheFirst(CopySnapshotter):
    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        for name in names:
            self.row(name)
        super().relabel(list(names)[:1], labels)


@breaks("relabel_changes_all_or_none")
class RelabelPassesOver(CopySnapshotter):
    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        super().relabel([name for name in names if name in self.rows], labels)


@breaks("relabel_changes_all_or_none")
class RelabelsEverything(CopySnapshotter):
    def relabel(self, names: Collection[str], labels: Mapping[str, str | None]) -> None:
        super().relabel(names, {})
        super().relabel(list(self.rows), labels)


@breaks("commit_takes_labels")
class CommitDropsLabels(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        super().commit(name, key, {})


@breaks("usage_counts_own_content")
class UsesNothing(CopySnapshotter):
    def usage(self, name: str) -> tuple[int, int]:
        self.row(name)
        return 0, 0


@breaks("usage_leaves_parents_out")
class CountsParents(CopySnapshotter):
    def usage(self, name: str) -> tuple[int, int]:
        return measure(self.directory(name))


@breaks("mounts_are_data")
class MountsByItself(CopySnapshotter):
    def make(self, kind: str, key: str, parent: str, options: SnapshotOptions) -> tuple[Mount, ...]:
        mounts = super().make(kind, key, parent, options)
        directory = self.directory(key)
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        return mounts

    def close(self) -> None:
        for row in self.rows.values():
            subprocess.run(["umount", self.context.root / str(row["number"])], check=False, stderr=subprocess.DEVNULL)


@breaks("snapshots_survive_reopening")
class RemembersNothing(CopySnapshotter):
    def __init__(self, config: NoConfig, context: Context) -> None:
        (context.root / "state.json").unlink(missing_ok=True)
        super().__init__(config, context)


@breaks("threads_work_side_by_side")
class OneRowForAll(CopySnapshotter):
    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        rows = dict(self.rows)
        time.sleep(0.01)
        self.rows.clear()
        self.rows.update(rows)
        return super().update(name, labels)


@breaks("remove_races_with_prepare")
class RemoveChecksTooEarly(CopySnapshotter):
    def remove(self, name: str) -> None:
        if not self.children(name):
            time.sleep(0.1)
            self.rows.pop(name, None)


# what is seen through the mounts


class ChangesTrees(CopySnapshotter):
    """Spoils the tree of a child after it was copied from its parent."""

    def copy(self, parent: str, target: Path) -> None:
        super().copy(parent, target)
        self.spoil(parent, target)

    def spoil(self, parent: str, target: Path) -> None:
        raise AssertionError("a fault says what it spoils")


@breaks("new_tree_is_empty")
class PrivateRoot(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        target.chmod(0o700)


@breaks("changes_are_kept_between_mounts")
class ForgetsChanges(CopySnapshotter):
    def mounts(self, key: str) -> tuple[Mount, ...]:
        directory = self.directory(key)
        shutil.rmtree(directory)
        self.copy(self.row(key)["parent"], directory)
        return super().mounts(key)


@breaks("child_sees_its_parents", "siblings_do_not_see_each_other")
class ChildrenAreEmpty(CopySnapshotter):
    def copy(self, parent: str, target: Path) -> None:
        super().copy("", target)


class SharesFiles(CopySnapshotter):
    def copy(self, parent: str, target: Path) -> None:
        if parent:
            subprocess.run(["cp", "-al", self.directory(parent), target], check=True)
        else:
            super().copy(parent, target)


breaks("parent_is_not_changed")(SharesFiles)


@breaks("siblings_do_not_see_each_other")
class SiblingsShareATree(CopySnapshotter):
    def copy(self, parent: str, target: Path) -> None:
        if parent:
            target.symlink_to(self.directory(parent))
        else:
            super().copy(parent, target)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        return tuple(evolve(mount, source=str(Path(mount.source).resolve())) for mount in super().mounts(key))


class Unions(CopySnapshotter):
    """Adds everything from the parents again at commit: whiteouts do not count."""

    def commit(self, name: str, key: str, labels: Labels) -> None:
        directory = self.directory(key)
        parent = self.row(key)["parent"]
        while parent:
            subprocess.run(
                ["cp", "-an", f"{self.directory(parent)}/.", directory], check=False, stderr=subprocess.DEVNULL
            )
            parent = self.row(parent)["parent"]
        super().commit(name, key, labels)


breaks(
    "removed_file_stays_removed",
    "removed_directory_stays_removed",
    "remade_directory_hides_the_old_one",
    "removed_and_made_again_in_a_third_layer",
    "moved_directory",
    "renamed_file",
)(Unions)


@breaks("file_and_directory_take_each_others_place")
class PlacesKeepTheirKind(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        parent = self.row(key)["parent"]
        if parent:
            for path in self.directory(parent).iterdir():
                other = self.directory(key) / path.name
                if path.is_dir() and other.is_file():
                    other.unlink()
                    subprocess.run(["cp", "-a", path, other], check=True)
        super().commit(name, key, labels)


class CopiesContentOnly(CopySnapshotter):
    def copy(self, parent: str, target: Path) -> None:
        if parent:
            subprocess.run(["cp", "-R", self.directory(parent), target], check=True)
        else:
            super().copy(parent, target)


breaks("metadata_is_kept", "metadata_of_the_root_is_kept")(CopiesContentOnly)


@breaks("metadata_is_kept")
class DropsSetuid(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        for path in target.iterdir():
            if path.is_file() and not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o777)


@breaks("metadata_changes_of_a_lower_file")
class KeepsLowerModes(CopySnapshotter):
    def commit(self, name: str, key: str, labels: Labels) -> None:
        parent = self.row(key)["parent"]
        if parent:
            for path in self.directory(parent).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    (self.directory(key) / path.name).chmod(path.stat().st_mode & 0o7777)
        super().commit(name, key, labels)


@breaks("attributes_outlive_later_layers")
class ForgetsModes(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        for path in target.iterdir():
            if path.is_dir():
                path.chmod(0o755)


@breaks("the_root_is_the_last_layers")
class ForgetsTheRootsXattrs(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        for name in os.listxattr(target):
            os.removexattr(target, name)


@breaks("the_root_is_the_last_layers")
class ForgetsTheRootsTime(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        os.utime(target)


@breaks("hard_links_to_a_lower_file")
class BreaksHardLinks(ChangesTrees):
    def copy(self, parent: str, target: Path) -> None:
        super().copy("", target)
        if parent:
            subprocess.run(
                ["cp", "-R", "--preserve=mode,timestamps", f"{self.directory(parent)}/.", target], check=True
            )


@breaks("names_of_any_bytes")
class WantsUtf8(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        for entry in os.scandir(os.fsencode(target)):
            with contextlib.suppress(UnicodeDecodeError):
                entry.name.decode()
                continue
            os.unlink(entry.path)


@breaks("many_layers")
class AtMostFiftyLayers(CopySnapshotter):
    def check_new(self, key: str, parent: str) -> None:
        super().check_new(key, parent)
        depth, below = 0, parent
        while below:
            depth, below = depth + 1, self.row(below)["parent"]
        if depth > 50:
            raise AlreadyExists(f"snapshot {key!r}", "too many layers")


@breaks("linked_and_then_removed")
class CopiesInsteadOfLinks(CopySnapshotter):
    """Two names in the upper tree are taken for two files, and the first comes back."""

    def commit(self, name: str, key: str, labels: Labels) -> None:
        parent = self.row(key)["parent"]
        if parent:
            subprocess.run(["cp", "-an", f"{self.directory(parent)}/.", self.directory(key)], check=False)
        super().commit(name, key, labels)


@breaks("same_size_and_time")
class BelievesTheTime(CopySnapshotter):
    """What has the size and the time of before counts as unchanged."""

    def commit(self, name: str, key: str, labels: Labels) -> None:
        parent = self.row(key)["parent"]
        for old in self.directory(parent).rglob("*") if parent else ():
            new = self.directory(key) / old.relative_to(self.directory(parent))
            if new.is_file() and (new.stat().st_size, new.stat().st_mtime) == (old.stat().st_size, old.stat().st_mtime):
                shutil.copy2(old, new)
        super().commit(name, key, labels)


@breaks("owners_of_directories")
class ForgetsOwners(ChangesTrees):
    def spoil(self, parent: str, target: Path) -> None:
        for path in target.iterdir():
            if path.is_dir() and not list(path.iterdir()):
                os.chown(path, 0, 0)


@breaks("removed_names_are_free")
class NamesAreForEver(CopySnapshotter):
    def __init__(self, config: NoConfig, context: Context) -> None:
        super().__init__(config, context)
        self.used: set[str] = set()

    def commit(self, name: str, key: str, labels: Labels) -> None:
        if name in self.used:
            raise AlreadyExists(f"snapshot {name!r}", "the name was used before")
        self.used.add(name)
        super().commit(name, key, labels)


breaks("walk_lets_others_remove")(WalksUnderALock)


@breaks("update_changes_labels_alone")
class UpdatedIsMadeAnew(CopySnapshotter):
    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        self.row(name)["created"] = time.time_ns()
        return super().update(name, labels)


@breaks("update_changes_labels_alone")
class ForgetsWhenItChanged(CopySnapshotter):
    def update(self, name: str, labels: Mapping[str, str | None]) -> SnapshotInfo:
        before = self.row(name)["updated"]
        super().update(name, labels)
        self.row(name)["updated"] = before
        return self.stat(name)


@breaks("close_may_be_repeated")
class ClosesOnce(CopySnapshotter):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise OSError("closed twice")
        self.closed = True


# layers that are put over their parents


@breaks("rebase_puts_a_layer_over_its_parent", "rebase_of_several_layers")
class RebaseForgetsTheParent(CopySnapshotter):
    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        super().rebase(key, parent, layer)
        self.row(key)["parent"] = ""
        return self.mounts(key)


@breaks("rebase_puts_a_layer_over_its_parent")
class RebaseLetsTheParentWin(CopySnapshotter):
    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        mounts = super().rebase(key, parent, layer)
        subprocess.run(["cp", "-a", f"{self.directory(parent)}/.", self.directory(key)], check=True)
        return mounts


@breaks("rebase_keeps_removals")
class RebaseShowsMarks(CopySnapshotter):
    """A mark in a directory of the layer's own is found as a device."""

    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        marks = [path.relative_to(self.directory(key)) for path in self.directory(key).glob("own/*")]
        mounts = super().rebase(key, parent, layer)
        for path in marks:
            os.mknod(self.directory(key) / path, stat.S_IFCHR, 0)
        return mounts


@breaks("rebase_keeps_removals")
class RebaseForgetsRemovals(CopySnapshotter):
    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        mounts = super().rebase(key, parent, layer)
        subprocess.run(["cp", "-an", f"{self.directory(parent)}/.", self.directory(key)], check=False)
        return mounts


@breaks("rebase_leaves_the_root_to_its_parent")
class RebaseKeepsTheRoot(CopySnapshotter):
    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        return super().rebase(key, parent, evolve(layer, root=True))


@breaks("rebase_refuses")
class RebasesAnything(CopySnapshotter):
    def rebase(self, key: str, parent: str, layer: ApartLayer) -> tuple[Mount, ...]:
        self.row(key).update(kind="active", parent="")
        return super().rebase(key, parent, layer)
