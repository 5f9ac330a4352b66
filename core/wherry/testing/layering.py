"""What every snapshotter must do, part two: what is seen through the mounts, layer upon layer.

Everything here really mounts, in a helper process with a mount namespace of its own, as a worker does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from wherry.interfaces.snapshotter import Snapshotter
from wherry.testing.contract import Contract
from wherry.testing.trees import TreeEntry, change, tree


def chain_id(text: str) -> str:
    """A name as layers of an image have it."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def layer(driver: Snapshotter, name: str, *operations: Sequence[object], parent: str = "") -> None:
    """Commits one layer as the engine does: prepare under a passing key, change, commit."""
    mounts = driver.prepare(f"unpack-{name[-8:]}", parent)
    if operations:
        change(mounts, *operations)
    driver.commit(name, f"unpack-{name[-8:]}", {})


def size_on_disk(directory: Path) -> int:
    """Bytes allocated below directory."""
    total = 0
    for path, directories, files in os.walk(directory):
        total += sum(os.lstat(f"{path}/{name}").st_blocks * 512 for name in (*directories, *files))
    return total


class LayeringClauses(Contract):
    """depth: how many layers ``test_many_layers`` stacks; Docker allows 127, containerd tries 128."""

    family = "snapshotter"
    depth: ClassVar[int] = 128

    def stacked(
        self, driver: Snapshotter, first: Sequence[Sequence[object]], second: Sequence[Sequence[object]]
    ) -> dict[str, TreeEntry]:
        """The tree over two layers: the first, then the second as a change to it."""
        layer(driver, chain_id("first"), *first)
        layer(driver, chain_id("second"), *second, parent=chain_id("first"))
        return tree(driver.view("stacked", chain_id("second")))

    def test_new_tree_is_empty(self, driver: Snapshotter) -> None:
        seen = tree(driver.prepare("work", ""))
        assert set(seen) == {"."}
        assert (seen["."].kind, seen["."].mode, seen["."].uid) == ("dir", 0o755, os.geteuid())

    def test_changes_are_kept_between_mounts(self, driver: Snapshotter) -> None:
        change(driver.prepare("work", ""), ("mkdir", "d"), ("write", "d/f", "text"))
        assert tree(driver.mounts("work"))["d/f"].content == b"text"

    def test_child_sees_its_parents(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("mkdir", "d"), ("write", "d/low", "1"), ("write", "both", "low")],
            [("write", "d/high", "2"), ("write", "both", "high")],
        )
        assert set(seen) == {".", "d", "d/low", "d/high", "both"}
        assert (seen["d/low"].content, seen["d/high"].content, seen["both"].content) == (b"1", b"2", b"high")

    def test_parent_is_not_changed(self, driver: Snapshotter) -> None:
        layer(driver, chain_id("base"), ("mkdir", "d"), ("write", "d/f", "base"), ("write", "gone", "x"))
        before = tree(driver.view("before", chain_id("base")))
        change(
            driver.prepare("work", chain_id("base")),
            ("write", "d/f", "changed"), ("remove", "gone"), ("chmod", "d", 0o700), ("write", "new", "n"),
        )  # fmt: skip
        after = tree(driver.view("after", chain_id("base")))
        assert {path: item.plain() for path, item in after.items()} == {
            path: item.plain() for path, item in before.items()
        }

    def test_siblings_do_not_see_each_other(self, driver: Snapshotter) -> None:
        layer(driver, chain_id("base"), ("write", "f", "base"))
        change(driver.prepare("one", chain_id("base")), ("write", "f", "one"), ("write", "only-one", "x"))
        seen = change(driver.prepare("two", chain_id("base")), ("write", "only-two", "x"))
        assert set(seen) == {".", "f", "only-two"}
        assert seen["f"].content == b"base"

    def test_removed_file_stays_removed(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("mkdir", "d"), ("write", "d/gone", "x"), ("write", "d/kept", "y"), ("write", "gone", "z")],
            [("remove", "d/gone"), ("remove", "gone")],
        )
        assert set(seen) == {".", "d", "d/kept"}
        assert set(tree(driver.view("below", chain_id("first")))) == {".", "d", "d/gone", "d/kept", "gone"}

    def test_removed_directory_stays_removed(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("mkdir", "d"), ("mkdir", "d/e"), ("write", "d/e/f", "x"), ("mkdir", "kept")],
            [("rmtree", "d")],
        )
        assert set(seen) == {".", "kept"}

    def test_remade_directory_hides_the_old_one(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("mkdir", "d"), ("write", "d/old", "x"), ("mkdir", "d/sub"), ("write", "d/sub/old", "x")],
            [("rmtree", "d"), ("mkdir", "d", 0o711), ("write", "d/new", "y")],
        )
        assert set(seen) == {".", "d", "d/new"}
        assert seen["d"].mode == 0o711

    def test_removed_and_made_again_in_a_third_layer(self, driver: Snapshotter) -> None:
        self.stacked(driver, [("mkdir", "d"), ("write", "d/f", "first")], [("rmtree", "d")])
        layer(driver, chain_id("third"), ("mkdir", "d"), ("write", "d/g", "third"), parent=chain_id("second"))
        assert set(tree(driver.view("top", chain_id("third")))) == {".", "d", "d/g"}

    def test_file_and_directory_take_each_others_place(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("write", "a", "file"), ("mkdir", "b"), ("write", "b/f", "x"), ("symlink", "c", "a")],
            [("remove", "a"), ("mkdir", "a"), ("write", "a/f", "y"), ("rmtree", "b"), ("write", "b", "file"),
             ("remove", "c"), ("write", "c", "plain")],
        )  # fmt: skip
        assert {path: item.kind for path, item in seen.items() if path != "."} == {
            "a": "dir", "a/f": "file", "b": "file", "c": "file",
        }  # fmt: skip
        assert tree(driver.view("below", chain_id("first")))["a"].content == b"file"

    def test_metadata_is_kept(self, driver: Snapshotter) -> None:
        when = 1_234_567_890_123_456_789
        seen = self.stacked(
            driver,
            [("write", "f", "x"), ("chown", "f", 1234, 4321), ("chmod", "f", 0o6754), ("xattr", "f", "user.note", "hello"),
             ("utime", "f", when), ("mkdir", "d"), ("chown", "d", 11, 12), ("chmod", "d", 0o1777), ("utime", "d", when),
             ("symlink", "l", "somewhere/else"), ("fifo", "p"), ("write", "a", "1"), ("link", "a", "b")],
            [("write", "unrelated", "x")],
        )  # fmt: skip
        file, directory = seen["f"], seen["d"]
        assert (file.uid, file.gid, file.mode, file.mtime) == (1234, 4321, 0o6754, when)
        assert dict(file.xattrs) == {"user.note": "hello"}
        assert (directory.uid, directory.gid, directory.mode, directory.mtime) == (11, 12, 0o1777, when)
        assert (seen["l"].kind, seen["l"].content, seen["p"].kind) == ("link", b"somewhere/else", "fifo")
        assert (seen["a"].inode, seen["a"].links) == (seen["b"].inode, 2)

    def test_metadata_changes_of_a_lower_file(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("write", "f", "content"), ("mkdir", "d"), ("write", "d/f", "deep")],
            [("chmod", "f", 0o600), ("chown", "d", 7, 8), ("chmod", "d", 0o750)],
        )
        assert (seen["f"].mode, seen["f"].content) == (0o600, b"content")
        assert (seen["d"].uid, seen["d"].gid, seen["d"].mode) == (7, 8, 0o750)
        assert seen["d/f"].content == b"deep"

    def test_metadata_of_the_root_is_kept(self, driver: Snapshotter) -> None:
        seen = self.stacked(driver, [("chown", ".", 21, 22), ("chmod", ".", 0o711)], [("write", "f", "x")])
        assert (seen["."].uid, seen["."].gid, seen["."].mode) == (21, 22, 0o711)

    def test_attributes_outlive_later_layers(self, driver: Snapshotter) -> None:
        """What one layer said of a directory stays so when another only writes into it."""
        self.stacked(
            driver,
            [("mkdir", "d", 0o755), ("write", "d/f", "x")],
            [("chmod", "d", 0o710), ("chown", "d", 7, 8), ("xattr", "d", "user.note", "second")],
        )
        layer(driver, chain_id("third"), ("write", "d/g", "third"), parent=chain_id("second"))
        seen = tree(driver.view("top", chain_id("third")))["d"]
        assert (seen.mode, seen.uid, seen.gid, dict(seen.xattrs)) == (0o710, 7, 8, {"user.note": "second"})

    def test_the_root_is_the_last_layers(self, driver: Snapshotter) -> None:
        when = 1_234_567_890_000_000_000
        layer(
            driver, chain_id("first"),
            ("chmod", ".", 0o700), ("chown", ".", 3, 4), ("xattr", ".", "user.note", "first"), ("utime", ".", when),
        )  # fmt: skip
        mounts = driver.prepare("work", chain_id("first"))
        seen = tree(mounts)["."]
        assert (seen.mode, seen.uid, seen.gid, seen.mtime) == (0o700, 3, 4, when)
        assert dict(seen.xattrs) == {"user.note": "first"}
        change(mounts, ("chmod", ".", 0o711), ("xattr", ".", "user.note", "second"), ("utime", ".", when + 1))
        driver.commit(chain_id("second"), "work", {})
        seen = tree(driver.view("top", chain_id("second")))["."]
        assert (seen.mode, seen.uid, seen.gid, seen.mtime) == (0o711, 3, 4, when + 1)
        assert dict(seen.xattrs) == {"user.note": "second"}

    def test_hard_links_to_a_lower_file(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver,
            [("write", "f", "low"), ("mkdir", "d")],
            [("link", "f", "d/g"), ("append", "d/g", "+high")],
        )
        assert (seen["f"].content, seen["d/g"].content) == (b"low+high", b"low+high")
        assert (seen["f"].inode, seen["f"].links) == (seen["d/g"].inode, 2)
        assert tree(driver.view("below", chain_id("first")))["f"].content == b"low"

    def test_moved_directory(self, driver: Snapshotter) -> None:
        """As mv(1) does it where rename(2) can't."""
        seen = self.stacked(
            driver,
            [("mkdir", "old"), ("write", "old/f", "x"), ("mkdir", "old/sub"), ("write", "old/sub/g", "y")],
            [("move", "old", "new"), ("write", "new/h", "z")],
        )
        assert set(seen) == {".", "new", "new/f", "new/sub", "new/sub/g", "new/h"}
        assert seen["new/sub/g"].content == b"y"

    def test_renamed_file(self, driver: Snapshotter) -> None:
        seen = self.stacked(
            driver, [("write", "old", "content"), ("mkdir", "d")], [("rename", "old", "d/new"), ("write", "old2", "x")]
        )
        assert set(seen) == {".", "d", "d/new", "old2"}
        assert seen["d/new"].content == b"content"

    def test_linked_and_then_removed(self, driver: Snapshotter) -> None:
        """The file of a lower layer gets a second name, and loses the first."""
        seen = self.stacked(
            driver,
            [("mkdir", "a"), ("write", "a/f", "low"), ("mkdir", "b")],
            [("link", "a/f", "b/f"), ("remove", "a/f")],
        )
        assert set(seen) == {".", "a", "b", "b/f"}
        assert (seen["b/f"].content, seen["b/f"].links) == (b"low", 1)

    def test_same_size_and_time(self, driver: Snapshotter) -> None:
        """A change that neither the size nor the time of a file tells of."""
        when = 1_234_567_890_000_000_000
        seen = self.stacked(
            driver,
            [
                ("mkdir", "etc"),
                ("write", "etc/hosts", "10.0.0.1"),
                ("utime", "etc/hosts", when),
                ("write", "etc/mode", "x"),
            ],
            [("write", "etc/hosts", "10.0.0.2"), ("utime", "etc/hosts", when), ("write", "etc/mode", "x", 0o666)],
        )
        assert (seen["etc/hosts"].content, seen["etc/hosts"].mtime) == (b"10.0.0.2", when)
        assert seen["etc/mode"].mode == 0o666

    def test_owners_of_directories(self, driver: Snapshotter) -> None:
        """Kept, changed, removed, and made again by a third layer, with and without what lies in them."""
        self.stacked(
            driver,
            [("mkdir", name) for name in ("kept", "changed", "gone", "full", "again")]
            + [("chown", name, 1, 1) for name in ("kept", "changed", "gone", "again")]
            + [("write", "full/f", "x"), ("write", "again/f", "x")],
            [("chown", "changed", 2, 2), ("rmtree", "gone"), ("chown", "full", 3, 3), ("chown", "full/f", 3, 3)],
        )
        layer(
            driver, chain_id("third"), ("mkdir", "gone", 0o700), ("chown", "gone", 4, 4), ("rmtree", "again"),
            ("mkdir", "again", 0o700), ("chown", "again", 5, 5), parent=chain_id("second"),
        )  # fmt: skip
        seen = tree(driver.view("top", chain_id("third")))
        owners = {name: entry.uid for name, entry in seen.items() if name != "."}
        assert owners == {"kept": 1, "changed": 2, "gone": 4, "full": 3, "full/f": 3, "again": 5}
        assert (seen["gone"].mode, seen["again"].mode, seen["kept"].mode) == (0o700, 0o700, 0o777)

    def test_names_of_any_bytes(self, driver: Snapshotter) -> None:
        names = ["späße", "with space", "new\nline", "x" * 255, "c:o,l=o\\n", "\udcff\udcfe", ".wh", "-rf", "*"]
        seen = self.stacked(driver, [("write", name, name) for name in names], [("remove", names[0])])
        assert set(seen) == {".", *names[1:]}
        assert seen["\udcff\udcfe"].content == b"\xff\xfe"

    def test_many_layers(self, driver: Snapshotter) -> None:
        parent = ""
        for index in range(self.depth):
            name = chain_id(f"deep-{index}")
            # Mounting each would take minutes; every tenth layer has content, the last one certainly.
            wanted = index % 10 == 0 or index == self.depth - 1
            layer(
                driver,
                name,
                *([("write", f"file-{index}", "x"), ("write", "last", str(index))] if wanted else []),
                parent=parent,
            )
            parent = name
        seen = change(driver.prepare("top", parent), ("write", "own", "x"))
        expected = {f"file-{index}" for index in range(self.depth) if index % 10 == 0 or index == self.depth - 1}
        assert set(seen) == {".", "last", "own", *expected}
        assert seen["last"].content == str(self.depth - 1).encode()
