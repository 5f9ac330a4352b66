"""What every snapshotter must do, part one: the life of snapshots. The trees behind the mounts are in ``layering``."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from wherry.errors import AlreadyExists, Error, InUse, Invalid, NotFound
from wherry.interfaces.common import Mount
from wherry.interfaces.snapshotter import SnapshotInfo, SnapshotOptions, Snapshotter
from wherry.testing.harness import Harness
from wherry.testing.layering import LayeringClauses, chain_id, layer, size_on_disk
from wherry.testing.rebasing import RebaseClauses
from wherry.testing.trees import change, tree

BASE = chain_id("base")


def walked(driver: Snapshotter) -> dict[str, SnapshotInfo]:
    infos = list(driver.walk())
    found = {info.name: info for info in infos}
    assert len(found) == len(infos), "walk lists a snapshot twice"
    return found


class SnapshotterContract(LayeringClauses, RebaseClauses):
    """The clauses of the snapshotter kind. See ``wherry.interfaces.snapshotter``."""

    # the three kinds

    def test_prepare_makes_an_active_snapshot(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        mounts = driver.prepare("work", BASE)
        info = driver.stat("work")
        assert (info.kind, info.name, info.parent) == ("active", "work", BASE)
        assert min(info.created, info.updated) > 10**18, "times are in nanoseconds since the epoch"
        assert driver.mounts("work") == mounts

    def test_view_is_read_only(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("write", "file", "base"))
        mounts = driver.view("look", BASE)
        assert (driver.stat("look").kind, driver.stat("look").parent) == ("view", BASE)
        assert driver.mounts("look") == mounts
        assert tree(mounts)["file"].content == b"base"
        for operation in (("write", "new", "x"), ("remove", "file"), ("chmod", "file", 0)):
            with pytest.raises(OSError, match="Read-only"):
                change(mounts, operation)

    def test_view_of_nothing_is_empty(self, driver: Snapshotter) -> None:
        assert set(tree(driver.view("look", ""))) == {"."}

    def test_commit_makes_a_committed_snapshot(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        driver.prepare("work", BASE)
        driver.commit(chain_id("top"), "work", {})
        info = driver.stat(chain_id("top"))
        assert (info.kind, info.name, info.parent) == ("committed", chain_id("top"), BASE)
        with pytest.raises(NotFound):
            driver.stat("work")
        driver.prepare("work", chain_id("top"))

    def test_mounts_are_for_active_and_view(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        with pytest.raises(Error):
            driver.mounts(BASE)

    def test_only_active_snapshots_are_committed(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        driver.view("look", BASE)
        for key in ("look", BASE):
            with pytest.raises(Error):
                driver.commit(chain_id("top"), key, {})
            assert chain_id("top") not in walked(driver)
        assert driver.stat("look").kind == "view"

    # refusals

    def test_taken_key_is_refused(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        driver.prepare("active", BASE)
        driver.view("view", BASE)
        for make in (driver.prepare, driver.view):
            for key in ("active", "view"):
                with pytest.raises(AlreadyExists):
                    make(key, BASE)
        assert (driver.stat("active").kind, driver.stat("view").kind) == ("active", "view")

    def test_parent_must_exist(self, driver: Snapshotter) -> None:
        for make in (driver.prepare, driver.view):
            with pytest.raises(NotFound):
                make("orphan", chain_id("absent"))
            assert walked(driver) == {}

    def test_parent_must_be_committed(self, driver: Snapshotter) -> None:
        driver.prepare("active", "")
        driver.view("view", "")
        for make in (driver.prepare, driver.view):
            for parent in ("active", "view"):
                with pytest.raises(NotFound):
                    make("child", parent)
        assert set(walked(driver)) == {"active", "view"}

    def test_commit_to_a_taken_name(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("write", "file", "first"))
        mounts = driver.prepare("late", "")
        change(mounts, ("write", "file", "late"))
        with pytest.raises(AlreadyExists):
            driver.commit(BASE, "late", {})
        assert driver.stat("late").kind == "active"
        assert tree(driver.mounts("late"))["file"].content == b"late"
        assert tree(driver.view("look", BASE))["file"].content == b"first"

    def test_a_committed_name_is_no_key(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        for make in (driver.prepare, driver.view):
            with pytest.raises(AlreadyExists):
                make(BASE, "")
        assert driver.stat(BASE).kind == "committed"

    def test_commit_of_an_unknown_key(self, driver: Snapshotter) -> None:
        with pytest.raises(NotFound):
            driver.commit(BASE, "absent", {})
        assert walked(driver) == {}

    def test_missing_snapshot_is_not_found(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        for look in (driver.stat, driver.usage, driver.mounts):
            with pytest.raises(NotFound):
                look("absent")
        with pytest.raises(NotFound):
            driver.update("absent", {"a": "b"})

    def test_hostile_key_leaves_the_directory_alone(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        """A key that looks like a path is data or Invalid: it makes nothing outside the driver's own directories."""
        for key in ("../../outside", "/outside", "a/../../../outside"):
            try:
                driver.prepare(key, "")
            except Invalid:
                continue
            assert driver.stat(key).name == key
        own = (harness.context.root, harness.context.run)
        made = [path for path in harness.directory.rglob("*outside*") if not set(own) & set(path.parents)]
        assert made == []
        assert not Path("/outside").exists()

    # removal

    def test_remove_is_idempotent(self, driver: Snapshotter) -> None:
        driver.remove("never was")
        layer(driver, BASE)
        driver.prepare("active", BASE)
        driver.view("view", BASE)
        for name in ("active", "view", BASE):
            driver.remove(name)
            driver.remove(name)
            with pytest.raises(NotFound):
                driver.stat(name)
        assert walked(driver) == {}

    def test_parent_in_use_is_kept(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("write", "file", "base"))
        layer(driver, chain_id("top"), parent=BASE)
        driver.remove(chain_id("top"))
        for make in (driver.prepare, driver.view):
            make("child", BASE)
            with pytest.raises(InUse):
                driver.remove(BASE)
            assert driver.stat(BASE).kind == "committed"
            assert tree(driver.mounts("child"))["file"].content == b"base"
            driver.remove("child")
        layer(driver, chain_id("top"), parent=BASE)
        with pytest.raises(InUse):
            driver.remove(BASE)
        driver.remove(chain_id("top"))
        driver.remove(BASE)

    def test_removal_from_the_top(self, driver: Snapshotter) -> None:
        """Neither end nor middle of a chain goes while something stands on it; from the top all go."""
        layer(driver, BASE, ("write", "low", "1"))
        layer(driver, chain_id("middle"), ("write", "mid", "2"), parent=BASE)
        mounts = driver.prepare("top", chain_id("middle"))
        for name in (BASE, chain_id("middle")):
            with pytest.raises(InUse):
                driver.remove(name)
        assert set(tree(mounts)) == {".", "low", "mid"}
        for name in ("top", chain_id("middle"), BASE):
            driver.remove(name)
        assert walked(driver) == {}

    def test_key_is_free_after_remove(self, driver: Snapshotter) -> None:
        mounts = driver.prepare("again", "")
        change(mounts, ("write", "old", "x"))
        driver.remove("again")
        assert set(tree(driver.prepare("again", ""))) == {"."}

    def test_removed_names_are_free(self, driver: Snapshotter) -> None:
        """For another kind, another parent, and as the name of another layer."""
        layer(driver, BASE, ("write", "old", "x"))
        for make, parent in ((driver.prepare, BASE), (driver.view, BASE), (driver.prepare, "")):
            make("again", parent)
            assert driver.stat("again").parent == parent
            driver.remove("again")
        driver.remove(BASE)
        change(driver.prepare("again", ""), ("write", "new", "x"))
        driver.commit(BASE, "again", {})
        assert set(tree(driver.view("look", BASE))) == {".", "new"}

    def test_cleanup_frees_what_was_removed(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        layer(driver, BASE, ("fill", "kept", 100_000))
        change(driver.prepare("big", BASE), ("fill", "big", 3_000_000))
        assert size_on_disk(harness.root) > 3_000_000
        driver.remove("big")
        assert driver.cleanup() >= 0
        assert size_on_disk(harness.root) < 1_000_000
        assert tree(driver.view("look", BASE))["kept"].content == b"x" * 100_000

    # removal in two steps

    def test_marked_snapshots_are_absent(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        layer(driver, chain_id("top"), parent=BASE)
        driver.prepare("work", "")
        assert driver.mark([chain_id("top"), "absent"]) == (chain_id("top"),)
        assert set(walked(driver)) == {BASE, "work"}
        for look in (driver.stat, driver.usage, driver.mounts):
            with pytest.raises(NotFound):
                look(chain_id("top"))
        with pytest.raises(NotFound):
            driver.update(chain_id("top"), {"a": "b"})
        for make in (driver.prepare, driver.view):
            with pytest.raises(NotFound):
                make("child", chain_id("top"))

    def test_marked_names_are_in_use(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        driver.mark([BASE])
        for make in (driver.prepare, driver.view):
            with pytest.raises(InUse):
                make(BASE, "")
        driver.prepare("work", "")
        with pytest.raises(InUse):
            driver.commit(BASE, "work", {})
        assert driver.stat("work").kind == "active"
        driver.sweep()
        driver.commit(BASE, "work", {})

    def test_mark_spares_what_others_stand_on(self, driver: Snapshotter) -> None:
        layer(driver, BASE)
        layer(driver, chain_id("top"), parent=BASE)
        driver.prepare("work", chain_id("top"))
        assert driver.mark([BASE, chain_id("top")]) == ()
        assert set(walked(driver)) == {BASE, chain_id("top"), "work"}
        driver.remove("work")
        assert set(driver.mark([BASE, chain_id("top")])) == {BASE, chain_id("top")}
        assert walked(driver) == {}

    def test_unmark_brings_back(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("write", "file", "base"))
        layer(driver, chain_id("top"), parent=BASE)
        before = walked(driver)
        driver.mark([BASE, chain_id("top")])
        driver.unmark([chain_id("top"), "absent"])
        assert walked(driver) == before, "with what it stands on"
        assert driver.sweep() == ()
        assert tree(driver.view("look", chain_id("top")))["file"].content == b"base"

    def test_sweep_removes_what_is_marked(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        layer(driver, BASE, ("fill", "kept", 100_000))
        layer(driver, chain_id("top"), ("fill", "big", 3_000_000), parent=BASE)
        layer(driver, chain_id("tip"), parent=chain_id("top"))
        driver.mark([chain_id("tip"), chain_id("top")])
        assert size_on_disk(harness.root) > 3_000_000, "nothing goes before the sweep"
        assert set(driver.sweep()) == {chain_id("tip"), chain_id("top")}
        assert driver.sweep() == ()
        driver.cleanup()
        assert size_on_disk(harness.root) < 1_000_000
        assert set(walked(driver)) == {BASE}
        driver.remove(BASE)

    def test_marks_end_with_a_restart(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        layer(driver, BASE, ("write", "file", "base"))
        before = walked(driver)
        driver.mark([BASE])
        driver = harness.reopen()
        assert walked(driver) == before
        assert driver.sweep() == ()
        assert tree(driver.view("look", BASE))["file"].content == b"base"

    # facts about them

    def test_walk_lists_all(self, driver: Snapshotter) -> None:
        assert walked(driver) == {}
        layer(driver, BASE)
        driver.prepare("active", BASE)
        driver.view("view", BASE)
        found = walked(driver)
        assert set(found) == {BASE, "active", "view"}
        assert all(driver.stat(name) == info for name, info in found.items())

    def test_walk_lets_others_look(self, driver: Snapshotter) -> None:
        """Whoever walks may ask for what he finds, and change it, before the next one comes."""
        for index in range(5):
            layer(driver, chain_id(f"layer-{index}"))
        for info in driver.walk():
            assert driver.stat(info.name) == info
            driver.usage(info.name)
            driver.update(info.name, {"seen": "yes"})
            driver.prepare(f"on-{info.name[-8:]}", info.name) if info.kind == "committed" else None
        found = [info for info in driver.walk() if info.kind == "committed"]
        assert [info.labels.get("seen") for info in found] == ["yes"] * 5

    def test_walk_lets_others_remove(self, driver: Snapshotter) -> None:
        for index in range(5):
            driver.prepare(f"key-{index}", "")
        for info in driver.walk():
            driver.remove(info.name)
        assert walked(driver) == {}

    def test_update_changes_labels_alone(self, driver: Snapshotter) -> None:
        """Whatever kind it is; what it was made from and when stays, and when it changed is told."""
        layer(driver, BASE)
        layer(driver, chain_id("top"), parent=BASE)
        driver.prepare("active", chain_id("top"))
        driver.prepare("first", "")
        driver.view("view", chain_id("top"))
        driver.view("nothing", "")
        for name, before in walked(driver).items():
            begun = time.time_ns()
            after = driver.update(name, {"a": "b"})
            assert begun <= after.updated <= time.time_ns()
            assert after == evolve(before, labels=after.labels, updated=after.updated)
            assert after.labels["a"] == "b"
            assert driver.stat(name) == after

    def test_labels_are_set_and_removed(self, driver: Snapshotter) -> None:
        driver.prepare("work", "", SnapshotOptions(labels={"one": "1", "two": "2"}))
        assert dict(driver.stat("work").labels) == {"one": "1", "two": "2"}
        answer = driver.update("work", {"two": None, "three": "3", "absent": None})
        assert dict(answer.labels) == {"one": "1", "three": "3"}
        assert dict(driver.stat("work").labels) == {"one": "1", "three": "3"}
        assert answer.updated >= answer.created

    def test_relabel_changes_all_or_none(self, driver: Snapshotter) -> None:
        for name in ("one", "two", "three"):
            driver.prepare(name, "", SnapshotOptions(labels={"old": name}))
        driver.relabel(["one", "two"], {"old": None, "new": "n"})
        assert [dict(driver.stat(name).labels) for name in ("one", "two")] == [{"new": "n"}] * 2
        assert dict(driver.stat("three").labels) == {"old": "three"}
        before = walked(driver)
        with pytest.raises(NotFound):
            driver.relabel(["one", "absent", "three"], {"new": "other"})
        assert walked(driver) == before
        driver.relabel([], {"new": "other"})
        assert walked(driver) == before

    def test_commit_takes_labels(self, driver: Snapshotter) -> None:
        driver.prepare("work", "")
        driver.commit(BASE, "work", {"layer": "yes"})
        assert driver.stat(BASE).labels["layer"] == "yes"
        driver.update(BASE, {"layer": None, "kept": "1"})
        assert "layer" not in driver.stat(BASE).labels
        assert driver.stat(BASE).labels["kept"] == "1"

    def test_usage_counts_own_content(self, driver: Snapshotter) -> None:
        change(driver.prepare("work", ""), ("mkdir", "d"), ("fill", "d/a", 1_000_000), ("fill", "d/b", 500_000))
        size, inodes = driver.usage("work")
        assert 1_500_000 <= size < 2_000_000
        assert 3 <= inodes <= 5, "two files, a directory, and perhaps the root"
        driver.commit(BASE, "work", {})
        assert driver.usage(BASE)[0] >= 1_500_000

    def test_usage_leaves_parents_out(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("fill", "big", 2_000_000))
        change(driver.prepare("work", BASE), ("fill", "small", 100_000))
        size, _ = driver.usage("work")
        assert 100_000 <= size < 1_000_000
        driver.commit(chain_id("top"), "work", {})
        assert 100_000 <= driver.usage(chain_id("top"))[0] < 1_000_000

    def test_usage_of_a_view_is_none(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("fill", "big", 2_000_000))
        driver.view("look", BASE)
        size, inodes = driver.usage("look")
        assert size < 100_000
        assert inodes <= 2

    def test_mounts_are_data(self, driver: Snapshotter) -> None:
        """The driver mounts nothing by itself, and what it hands over stands for the container's root."""
        table = Path("/proc/self/mountinfo")
        before = table.read_text()
        layer(driver, BASE)
        for mounts in (driver.prepare("active", BASE), driver.view("view", BASE), driver.prepare("first", "")):
            assert isinstance(mounts, tuple)
            assert mounts
            assert all(isinstance(mount, Mount) for mount in mounts)
            assert mounts[0].target == ""
        assert table.read_text() == before

    def test_snapshots_survive_reopening(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        layer(driver, BASE, ("write", "file", "base"))
        change(driver.prepare("active", BASE, SnapshotOptions(labels={"a": "b"})), ("write", "own", "change"))
        driver.view("view", BASE)
        infos = walked(driver)
        mounts = {key: driver.mounts(key) for key in ("active", "view")}
        driver = harness.reopen()
        assert walked(driver) == infos
        assert {key: driver.mounts(key) for key in mounts} == mounts
        seen = tree(driver.mounts("active"))
        assert (seen["file"].content, seen["own"].content) == (b"base", b"change")
        driver.commit(chain_id("top"), "active", {})
        assert tree(driver.view("look", chain_id("top")))["own"].content == b"change"

    def test_close_may_be_repeated(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        """For a driver that has something to close."""
        layer(driver, BASE)
        driver.remove(BASE)
        close = getattr(driver, "close", lambda: None)
        close()
        close()
        assert walked(harness.reopen()) == {}

    # many at once

    def test_threads_work_side_by_side(self, driver: Snapshotter) -> None:
        layer(driver, BASE, ("write", "file", "base"))

        def life(index: int) -> str:
            name = chain_id(f"side-{index}")
            driver.prepare(f"key-{index}", BASE)
            driver.update(f"key-{index}", {"index": str(index)})
            driver.commit(name, f"key-{index}", {"index": str(index)})
            driver.prepare(f"child-{index}", name)
            if index % 2:
                driver.remove(f"child-{index}")
            return name

        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(life, range(24)))
        found = walked(driver)
        assert set(found) == {BASE, *names, *(f"child-{index}" for index in range(0, 24, 2))}
        assert [found[name].labels["index"] for name in names] == [str(index) for index in range(24)]
        assert tree(driver.mounts("child-0"))["file"].content == b"base"

    def test_one_thread_gets_the_key(self, driver: Snapshotter) -> None:
        def take(_: int) -> bool:
            try:
                driver.prepare("contended", "")
            except AlreadyExists:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, range(24))) == 1

    def test_remove_races_with_prepare(self, driver: Snapshotter) -> None:
        """Either the child came first and the parent stays, or the parent went first: never a child without parent."""

        def attempt(call: Any, *arguments: str) -> bool:
            try:
                call(*arguments)
            except (InUse, NotFound):
                return False
            return True

        for turn in range(12):
            parent, child = chain_id(f"parent-{turn}"), f"child-{turn}"
            layer(driver, parent)
            with ThreadPoolExecutor(2) as pool:
                removed = pool.submit(attempt, driver.remove, parent)
                prepared = pool.submit(attempt, driver.prepare, child, parent)
            assert removed.result() != prepared.result()
            assert (child in walked(driver)) == (parent in walked(driver)) == prepared.result()
