"""snapshotter.vfs beyond the contract: a copy is a copy in every respect, and crashes leave only rubbish."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.layers import tree
from wherry.api import IdMap, Mount, NotFound, SnapshotOptions
from wherry.layers import copying as copy_module
from wherry.layers.copying import TreeCopy
from wherry.testing.harness import LocalContext
from wherry_plugins.snapshotter.vfs import VfsConfig
from wherry_plugins.snapshotter.vfs.snapshotter import VfsSnapshotter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Everything that a tree can hold."""
    root = tmp_path / "source"
    (root / "d/deep").mkdir(parents=True)
    (root / "d/file").write_bytes(os.urandom(3_000_000))
    os.link(root / "d/file", root / "d/deep/hard")
    os.link(root / "d/file", root / "again")
    (root / "link").symlink_to("/nowhere/at/all")
    os.link(root / "link", root / "link2", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o622)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    (root / "suid").write_bytes(b"x")
    os.chown(root / "suid", 10, 20)
    os.setxattr(root / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(root / "d", "user.note", b"\0binary")
    os.setxattr(root / "link", "trusted.note", b"on a link", follow_symlinks=False)
    os.chmod(root / "suid", 0o6755)
    with open(root / "sparse", "wb") as file:
        file.truncate(5 << 20)
        file.seek(20 << 20)
        file.write(b"middle")
        file.truncate(30 << 20)
    (root / "empty").touch()
    os.chmod(root / "d", 0o2770)
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(1_000_000_001, 2_000_000_003), follow_symlinks=False)
    return root


class Here:
    """Does what a worker does, in this process."""

    def copy(
        self, mounts: tuple[Mount, ...], source: str, target: str, idmap: IdMap = IdMap(), *, reflink: bool = True
    ) -> None:
        top, here = mounts[0].source, os.getcwd()
        try:
            TreeCopy(reflink=reflink, uids=idmap.uids, gids=idmap.gids).run(f"{top}/{source}", f"{top}/{target}")
        finally:
            os.chdir(here)


def _copy(source: Path, target: Path, *, reflink: bool = True) -> Path:
    target.mkdir()
    Here().copy((Mount("bind", ""),), str(source), str(target), reflink=reflink)
    return target


@pytest.mark.parametrize("reflink", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_copy_is_the_same(source: Path, tmp_path: Path, reflink: bool, ranges: bool, monkeypatch: Any) -> None:
    if not ranges:

        def refuse(*args: Any) -> int:
            raise OSError(95, "operation not supported")

        monkeypatch.setattr(copy_module.os, "copy_file_range", refuse)
    target = _copy(source, tmp_path / "target", reflink=reflink)
    assert tree(target, times=True) == tree(source, times=True)
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20


def test_sockets_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
        assert os.listdir(_copy(root, tmp_path / "t")) == []


def test_links_are_copied_and_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    root = tmp_path / "s"
    root.mkdir()
    (root / "dir").symlink_to(secret)
    (root / "file").symlink_to(secret / "file")
    target = _copy(root, tmp_path / "t")
    assert os.readlink(target / "dir") == str(secret)
    assert os.readlink(target / "file") == str(secret / "file")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[VfsSnapshotter]:
    made = VfsSnapshotter(
        VfsConfig(), LocalContext("snapshotter.vfs", tmp_path / "root", tmp_path / "run", workers=Here())
    )
    yield made
    made.close()


def _base(driver: VfsSnapshotter, source: Path) -> None:
    (mount,) = driver.prepare("k", "")
    os.rmdir(mount.source)
    _copy(source, Path(mount.source))
    driver.commit("base", "k", {})


def test_a_snapshot_is_a_copy_of_its_parent(driver: VfsSnapshotter, source: Path) -> None:
    _base(driver, source)
    (mount,) = driver.prepare("c", "base")
    assert tree(Path(mount.source), times=True) == tree(source, times=True)
    (view,) = driver.view("v", "base")
    assert view.options == ("rbind", "ro")
    assert driver.usage("c")[0] < 20_000
    assert driver.usage("base")[0] > 3_000_000


def test_a_copy_that_fails_leaves_nothing(
    driver: VfsSnapshotter, source: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    _base(driver, source)

    def full(*args: Any) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TreeCopy, "_data", full)
        with pytest.raises(OSError, match="no space"):
            driver.prepare("c", "base")
    with pytest.raises(NotFound):
        driver.stat("c")
    assert len(os.listdir(tmp_path / "root/snapshots")) == 1
    driver.prepare("c", "base")


def test_what_a_crash_left_goes_with_cleanup(driver: VfsSnapshotter, source: Path, tmp_path: Path) -> None:
    _base(driver, source)
    _copy(source, tmp_path / "root/snapshots/new-0123")
    _copy(source, tmp_path / "root/snapshots/99")
    assert driver.cleanup() > 6_000_000
    assert len(os.listdir(tmp_path / "root/snapshots")) == 1


def test_a_parent_that_goes_meanwhile(driver: VfsSnapshotter, source: Path, monkeypatch: Any) -> None:
    _base(driver, source)
    real = TreeCopy.run

    def slow(self: TreeCopy, old: str, new: str) -> None:
        real(self, old, new)
        driver.remove("base")

    monkeypatch.setattr(TreeCopy, "run", slow)
    with pytest.raises(NotFound):
        driver.prepare("c", "base")
    assert list(driver.walk()) == []


def test_trees_deeper_than_paths_and_descriptors(driver: VfsSnapshotter, tmp_path: Path) -> None:
    """What a container can make in a loop of mkdir and cd."""
    (mount,) = driver.prepare("k", "")
    here = os.open(mount.source, os.O_RDONLY)
    for _level in range(3000):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=here), "w") as file:
        file.write("x")
    os.link("end", "again", src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    driver.commit("base", "k", {})
    driver.prepare("c", "base")
    assert driver.usage("base")[1] == 3002
    driver.remove("c")
    driver.remove("base")
    driver.cleanup()
    assert os.listdir(tmp_path / "root/snapshots") == []


def test_ids_are_remapped_by_the_mount(driver: VfsSnapshotter, source: Path, tmp_path: Path) -> None:
    _base(driver, source)
    idmap = IdMap(((0, 100_000, 65_536),), ((0, 200_000, 65_536),))
    (mount,) = driver.prepare("c", "base", SnapshotOptions(idmap=idmap))
    assert mount.idmap == idmap
    assert (Path(mount.source) / "suid").stat().st_uid == 10, "on disk nothing changes"
    driver.close()
    again = VfsSnapshotter(
        VfsConfig(), LocalContext("snapshotter.vfs", tmp_path / "root", tmp_path / "run", workers=Here())
    )
    assert again.mounts("c") == (mount,)
    again.close()


def test_a_copy_that_is_to_last_is_on_disk_before_its_row(
    driver: VfsSnapshotter, source: Path, monkeypatch: Any
) -> None:
    """Through a descriptor that was open before the first write; what the disk lost is no snapshot."""
    _base(driver, source)
    seen: list[tuple[bool, list[str]]] = []
    opened: list[int] = []
    real_open, real_copy = os.open, TreeCopy.run

    def note(path: Any, flags: int, *args: Any, **more: Any) -> int:
        opened.append(real_open(path, flags, *args, **more))
        return opened[-1]

    def copy(self: TreeCopy, old: str, new: str) -> None:
        before = set(opened)
        real_copy(self, old, new)
        early.update(before)

    def sync(fd: int) -> None:
        seen.append((fd in early, [info.name for info in driver.walk()]))
        if fail:
            raise OSError(5, "lost")

    early: set[int] = set()
    fail = False
    monkeypatch.setattr("wherry_plugins.snapshotter.vfs.snapshotter.os.open", note)
    monkeypatch.setattr(TreeCopy, "run", copy)
    monkeypatch.setattr("wherry_plugins.snapshotter.vfs.snapshotter.syncfs", sync)
    driver.prepare("fleeting", "base", SnapshotOptions(durable=False))
    assert seen == []
    driver.prepare("kept", "base")
    assert seen == [(True, ["base", "fleeting"])]
    fail = True
    with pytest.raises(OSError, match="lost"):
        driver.prepare("lost", "base")
    assert [info.name for info in driver.walk()] == ["base", "fleeting", "kept"]
