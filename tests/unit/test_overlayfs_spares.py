"""snapshotter.overlayfs: what a container left empty is the next one's, and nothing of the first is seen in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.images_area import mounted
from wherry.api import Mount, SnapshotOptions
from wherry.kit.snapshots import stacked
from wherry.testing.harness import LocalContext
from wherry_plugins.snapshotter.overlayfs import OverlayConfig
from wherry_plugins.snapshotter.overlayfs.snapshotter import OverlaySnapshotter


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlaySnapshotter]:
    made = OverlaySnapshotter(OverlayConfig(), LocalContext("x", tmp_path / "root", tmp_path / "run"))
    (mount,) = made.prepare("key", "")
    Path(mount.source, "file").write_text("x")
    os.utime(mount.source, ns=(5, 5))
    made.commit("layer", "key", {})
    yield made
    made.close()
    assert names(tmp_path) == {"1"} | {str(row.number) for row in made_rows(tmp_path)}


def made_rows(tmp_path: Path) -> list[Any]:
    again = OverlaySnapshotter(OverlayConfig(), LocalContext("x", tmp_path / "root", tmp_path / "run"))
    try:
        return list(again.rows.walk())
    finally:
        again.close()


def names(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "root/snapshots"))


def top(mounts: tuple[Mount, ...]) -> Path:
    return Path(next(o for o in mounts[0].options if o.startswith("upperdir=")).partition("=")[2]).parent


def lived(driver: OverlaySnapshotter, key: str, at: Path, *, write: bool = False) -> int:
    """The inode of the directory of a container that ran and is gone."""
    mounts = driver.prepare(key, "layer", SnapshotOptions(durable=False, volatile=True))
    with mounted(mounts, at) as root:
        (root / "new").touch() if write else os.setxattr(root, "trusted.mark", b"x")
    inode = top(mounts).stat().st_ino
    driver.remove(key)
    driver._trash.empty()
    return inode


def test_a_spare_is_as_new(driver: OverlaySnapshotter, tmp_path: Path) -> None:
    inode = lived(driver, "a", tmp_path / "m")
    assert len(driver._spares) == 1
    mounts = driver.prepare("b", "layer")
    place = top(mounts)
    assert place.stat().st_ino == inode, "it was used again"
    assert not driver._spares
    assert not driver.making
    assert sorted(os.listdir(place)) == ["fs", "work"]
    assert os.listdir(place / "fs") == os.listdir(place / "work") == []
    assert "trusted.mark" not in os.listxattr(place / "fs")
    assert (place / "fs").stat().st_mtime_ns == 5
    with mounted(mounts, tmp_path / "m") as root:
        assert (root / "file").read_text() == "x"


def test_what_was_written_to_is_deleted(driver: OverlaySnapshotter, tmp_path: Path) -> None:
    lived(driver, "a", tmp_path / "m", write=True)
    assert not driver._spares
    assert not driver.making
    assert names(tmp_path) == {"1"}


def test_views_and_what_holds_more_are_no_spares(driver: OverlaySnapshotter, tmp_path: Path) -> None:
    driver.view("v", "")
    driver.remove("v")
    (top(driver.prepare("i", "layer")) / "work/index").mkdir()
    driver.remove("i")
    driver._trash.empty()
    assert not driver._spares
    assert names(tmp_path) == {"1"}


def test_cleanup_gives_them_up(driver: OverlaySnapshotter, tmp_path: Path) -> None:
    lived(driver, "a", tmp_path / "m")
    driver.cleanup()
    assert not driver._spares
    assert not driver.making
    assert names(tmp_path) == {"1"}


def test_so_many_and_no_more(driver: OverlaySnapshotter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "SPARES", 2)
    for key in "abcd":
        driver.prepare(key, "layer")
    for key in "abcd":
        driver.remove(key)
    driver._trash.empty()
    assert len(driver._spares) == 2
    assert len(names(tmp_path)) == 3


def test_one_that_cant_be_had_is_made(driver: OverlaySnapshotter, tmp_path: Path) -> None:
    """Where the next number has a directory that a crash left, and where the spare has gone."""
    lived(driver, "a", tmp_path / "m")
    left = tmp_path / "root/snapshots/3/fs/old"
    left.mkdir(parents=True)
    place = top(driver.prepare("b", "layer"))
    assert place.name == "3"
    assert os.listdir(place / "fs") == []
    driver._trash.empty()
    for spare in driver._spares:
        os.rename(tmp_path / "root/snapshots" / spare, tmp_path / "gone")
    place = top(driver.prepare("c", "layer"))
    assert sorted(os.listdir(place)) == ["fs", "work"]


def test_a_crash_leaves_none(driver: OverlaySnapshotter, tmp_path: Path) -> None:
    """The next engine takes them for what they are: directories without a row."""
    lived(driver, "a", tmp_path / "m")
    assert len(names(tmp_path)) == 2
    again = OverlaySnapshotter(OverlayConfig(), LocalContext("x", tmp_path / "root", tmp_path / "run"))
    again._trash.empty()
    again.cleanup()
    assert names(tmp_path) == {"1"}
    again.close()
    driver._spares.clear()
