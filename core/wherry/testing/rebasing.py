"""What a snapshotter must do that says "rebase": layers unpacked side by side, and put over their parents afterwards."""

from __future__ import annotations

from typing import cast

import pytest

from wherry.errors import FailedPrecondition, InUse, NotFound
from wherry.interfaces.common import Digest
from wherry.interfaces.snapshotter import ApartLayer, LayerSnapshotter, Snapshotter
from wherry.testing.contract import Contract
from wherry.testing.harness import Harness
from wherry.testing.layering import chain_id, layer
from wherry.testing.trees import change, tree

DIFF_ID = Digest(chain_id("diff"))
LOW, TOP = chain_id("low"), chain_id("top")


def rebaser(driver: Snapshotter, harness: Harness[Snapshotter]) -> LayerSnapshotter:
    """The driver, or a skip: the others need none of this."""
    if "rebase" not in harness.provides():
        pytest.skip(f'{harness.context.id} does not say "rebase"')
    return cast(LayerSnapshotter, driver)


def opaque(harness: Harness[Snapshotter]) -> str:
    """The xattr that hides all that a directory had below."""
    return f"{'user' if 'userxattr' in harness.provides() else 'trusted'}.overlay.opaque"


class RebaseClauses(Contract):
    """The layer is written to an active snapshot without a parent, as a worker does that unpacks it apart."""

    family = "snapshotter"

    def test_rebase_puts_a_layer_over_its_parent(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        able = rebaser(driver, harness)
        layer(driver, LOW, ("mkdir", "d"), ("write", "d/low", "1"), ("write", "f", "low"))
        change(driver.prepare("apart", ""), ("mkdir", "d"), ("write", "d/high", "2"), ("write", "f", "high"))
        mounts = able.rebase("apart", LOW, ApartLayer(DIFF_ID, root=False))
        assert driver.mounts("apart") == mounts
        assert (driver.stat("apart").kind, driver.stat("apart").parent) == ("active", LOW)
        seen = tree(mounts)
        assert set(seen) == {".", "d", "d/low", "d/high", "f"}
        assert seen["f"].content == b"high"
        driver.commit(TOP, "apart", {})
        view = tree(driver.view("look", TOP))
        assert {path: one.plain() for path, one in view.items()} == {path: one.plain() for path, one in seen.items()}
        assert tree(driver.view("below", LOW))["f"].content == b"low"
        driver.remove("below")
        with pytest.raises(InUse):
            driver.remove(LOW)

    def test_rebase_keeps_removals(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        """Names and whole directories; a mark where nothing is merged is no file that somebody could find."""
        able, mark = rebaser(driver, harness), opaque(harness)
        layer(
            driver, LOW, ("write", "gone", "x"), ("write", "kept", "x"), ("mkdir", "d"), ("write", "d/old", "x"),
            ("write", "d/stays", "x"), ("mkdir", "emptied"), ("write", "emptied/old", "x"),
        )  # fmt: skip
        change(
            driver.prepare("apart", ""), ("whiteout", "gone"), ("mkdir", "d"), ("whiteout", "d/old"), ("mkdir", "emptied"),
            ("xattr", "emptied", mark, "y"), ("write", "emptied/new", "x"), ("mkdir", "own"), ("whiteout", "own/never"),
        )  # fmt: skip
        removals = ("d", "own")
        able.rebase("apart", LOW, ApartLayer(DIFF_ID, root=False, removals=removals))
        driver.commit(TOP, "apart", {})
        for mounts in (driver.view("look", TOP), driver.prepare("work", TOP)):
            assert set(tree(mounts)) == {".", "kept", "d", "d/stays", "emptied", "emptied/new", "own"}
        assert "gone" in tree(driver.view("below", LOW))

    def test_rebase_leaves_the_root_to_its_parent(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        """Unless the layer says something of it."""
        able, when = rebaser(driver, harness), 1_234_567_890_000_000_000
        layer(
            driver, LOW,
            ("chmod", ".", 0o711), ("chown", ".", 3, 4), ("xattr", ".", "user.note", "low"), ("utime", ".", when),
        )  # fmt: skip
        for name, own in (("silent", False), ("own", True)):
            change(driver.prepare(name, ""), ("write", name, "x"), ("chmod", ".", 0o750), ("utime", ".", when + 1))
            able.rebase(name, LOW, ApartLayer(DIFF_ID, root=own))
            driver.commit(chain_id(name), name, {})
        silent, own_root = (tree(driver.view(f"look-{name}", chain_id(name)))["."] for name in ("silent", "own"))
        assert (silent.mode, silent.uid, silent.gid, silent.mtime) == (0o711, 3, 4, when)
        assert dict(silent.xattrs) == {"user.note": "low"}
        assert (own_root.mode, own_root.uid, own_root.mtime) == (0o750, 0, when + 1)

    def test_rebase_of_several_layers(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        """All are there before the first has a parent; the highest is filled first."""
        able = rebaser(driver, harness)
        for number in (2, 1, 0):
            change(
                driver.prepare(f"apart-{number}", ""),
                ("mkdir", "d"), ("write", f"d/{number}", "x"), ("write", "last", str(number)),
            )  # fmt: skip
        parent = ""
        for number in range(3):
            if parent:
                able.rebase(f"apart-{number}", parent, ApartLayer(DIFF_ID, root=False))
            driver.commit(chain_id(f"layer-{number}"), f"apart-{number}", {})
            parent = chain_id(f"layer-{number}")
        seen = tree(driver.view("look", parent))
        assert set(seen) == {".", "d", "d/0", "d/1", "d/2", "last"}
        assert seen["last"].content == b"2"
        assert driver.stat(parent).parent == chain_id("layer-1")

    def test_rebase_refuses(self, driver: Snapshotter, harness: Harness[Snapshotter]) -> None:
        able, apart = rebaser(driver, harness), ApartLayer(DIFF_ID, root=False)
        layer(driver, LOW, ("write", "f", "low"))
        change(driver.prepare("free", ""), ("write", "f", "free"))
        driver.prepare("other", "")
        driver.prepare("child", LOW)
        driver.view("view", "")
        for key, parent, error in (
            ("free", chain_id("absent"), NotFound), ("free", "other", NotFound), ("free", "view", NotFound),
            ("absent", LOW, NotFound), ("child", LOW, FailedPrecondition), ("view", LOW, FailedPrecondition),
            (LOW, LOW, FailedPrecondition),
        ):  # fmt: skip
            with pytest.raises(error):
                able.rebase(key, parent, apart)
        assert {info.name: (info.kind, info.parent) for info in driver.walk()} == {
            LOW: ("committed", ""), "free": ("active", ""), "other": ("active", ""), "child": ("active", LOW),
            "view": ("view", ""),
        }  # fmt: skip
        assert tree(driver.mounts("free"))["f"].content == b"free"
