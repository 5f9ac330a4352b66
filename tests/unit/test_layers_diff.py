"""The layer between two trees: applied to the lower one it gives the upper one."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.generated import Generator
from support.images_area import world
from support.layers import digest, directory, hard, link, member, tar, tree, unpack
from wherry.api import Descriptor, Mount, SnapshotOptions
from wherry.engine.workers.pool import WorkerPool
from wherry.layers.diff import diff

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


def changes(lower: Path, upper: Path) -> bytes:
    out = io.BytesIO()
    old, new = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (lower, upper))
    try:
        diff(old, new, out.write)
    finally:
        os.close(old)
        os.close(new)
    return out.getvalue()


def listed(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return archive.getnames()


def copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    return target


BASE = tar(
    directory("d", mode=0o750),
    member("d/1", data=b"1" * 3000),
    member("d/2", data=b"2"),
    directory("d/sub", pax_headers={"SCHILY.xattr.user.a": "b"}),
    member("d/sub/x", data=b"x"),
    hard("hard", "d/1"),
    link("l", "d"),
    member("fifo", tarfile.FIFOTYPE),
    member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("caps", data=b"c", pax_headers={"SCHILY.xattr.user.a": "b"}),
)


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    path = tmp_path / "lower"
    path.mkdir()
    unpack(path, BASE)
    return path


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


CHANGES: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "nothing": (lambda root: None, set()),
    "a new file": (lambda root: (root / "new").write_bytes(b"n"), {"new", "."}),
    "a new tree": (lambda root: (root / "n/e/w").mkdir(parents=True), {"n", "n/e", "n/e/w", "."}),
    "other content": (lambda root: (root / "d/2").write_bytes(b"3"), {"d/2"}),
    "another mode": (lambda root: (root / "d/2").chmod(0o600), {"d/2"}),
    "another owner": (lambda root: os.chown(root / "d", 1, 2), {"d"}),
    "another time": (lambda root: os.utime(root / "caps", (5, 6)), {"caps"}),
    "another xattr": (lambda root: os.setxattr(root / "caps", "user.a", b"c"), {"caps"}),
    "one xattr less": (lambda root: os.removexattr(root / "caps", "user.a"), {"caps"}),
    "a directory's xattr": (lambda root: os.setxattr(root / "d", "user.new", b"c"), {"d"}),
    "a directory's xattr less": (lambda root: os.removexattr(root / "d/sub", "user.a"), {"d/sub"}),
    "a file less": (lambda root: (root / "d/2").unlink(), {"d", "d/.wh.2"}),
    "a tree less": (lambda root: shutil.rmtree(root / "d/sub"), {"d", "d/.wh.sub"}),
    "a link elsewhere": (lambda root: _replace(root / "l", lambda path: path.symlink_to("elsewhere")), {"l", "."}),
    "a directory becomes a file": (lambda root: _replace(root / "d", lambda path: path.write_bytes(b"f")), {"d", "."}),
    "a directory becomes a link": (lambda root: _replace(root / "d", lambda path: path.symlink_to("x")), {"d", "."}),
    "a file becomes a directory": (lambda root: _replace(root / "caps", Path.mkdir), {"caps", "."}),
    "another device": (
        lambda root: _replace(root / "null", lambda path: os.mknod(path, 0o20644, os.makedev(1, 5))),
        {"null", "."},
    ),
    "hard links": (
        lambda root: ((root / "h1").write_bytes(b"h"), os.link(root / "h1", root / "h2")),
        {"h1", "h2", "."},
    ),
    "a new directory of the old name": (
        lambda root: _replace(root / "d", lambda path: (path.mkdir(), (path / "only").touch())),
        {"d", "d/.wh.1", "d/.wh.2", "d/.wh.sub", "d/only", "."},
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_change_and_nothing_else(lower: Path, tmp_path: Path, case: str) -> None:
    change, wanted = CHANGES[case]
    upper = copy(lower, tmp_path / "upper")
    change(upper)
    layer = changes(lower, upper)
    assert set(listed(layer)) == wanted
    assert layer == changes(lower, upper), "the same change gives the same bytes"
    unpack(lower, layer)
    assert tree(lower, times=True) == tree(upper, times=True)


def test_everything_is_new_over_nothing(lower: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "target").mkdir()
    layer = changes(tmp_path / "empty", lower)
    unpack(tmp_path / "target", layer)
    assert tree(tmp_path / "target", times=True) == tree(lower, times=True)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "-C", str(theirs), "-xpf", "-"], input=layer, check=True)
    assert tree(theirs, times=True) == tree(lower, times=True), "GNU tar reads it alike"


@pytest.mark.parametrize("seed", range(15))
def test_random_changes(tmp_path: Path, seed: int) -> None:
    """Two trees grown from one seed; the layer between them always leads from one to the other."""
    chance = random.Random(seed)

    def grow(root: Path, steps: int) -> None:
        for _ in range(steps):
            directories = [root, *(path for path in sorted(root.rglob("*")) if path.is_dir() and not path.is_symlink())]
            path = chance.choice(directories) / chance.choice("abcdef")
            if os.path.lexists(path) and chance.random() < 0.6:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            if not os.path.lexists(path):
                kind = chance.randrange(5)
                if kind == 0:
                    path.mkdir(mode=chance.choice((0o700, 0o755, 0o1777)))
                elif kind == 1:
                    path.symlink_to(chance.choice("abc/"))
                elif kind == 2:
                    os.mkfifo(path)
                else:
                    path.write_bytes(chance.randbytes(chance.randrange(3000)))
            elif path.is_file() and not path.is_symlink():
                os.chown(path, chance.randrange(3), 0)
        for path in root.rglob("*"):
            os.utime(path, ns=(0, chance.randrange(10) * 10**9 + 1), follow_symlinks=False)

    lower = tmp_path / "lower"
    lower.mkdir()
    grow(lower, 40)
    upper = copy(lower, tmp_path / "upper")
    grow(upper, 30)
    unpack(lower, changes(lower, upper))
    found, wanted = tree(lower, times=True), tree(upper, times=True)
    for side in (found, wanted):  # the mtime of a link alone is no change
        for name, what in side.items():
            if what[0].startswith("l"):
                side[name] = what[:-1]
    assert found == wanted


@pytest.mark.parametrize("ending", ["", "+gzip", "+zstd"])
def test_a_worker_diffs_mounted_trees(lower: Path, tmp_path: Path, ending: str) -> None:
    (tmp_path / "run").mkdir()
    pool = WorkerPool(tmp_path / "run")
    upper = copy(lower, tmp_path / "upper")
    (upper / "new").write_bytes(b"n" * 100_000)
    media_type = f"application/vnd.oci.image.layer.v1.tar{ending}"

    def mount(path: Path) -> tuple[Mount, ...]:
        return (Mount("bind", str(path), "", ("rbind", "ro")),)

    with open(tmp_path / "blob", "wb") as sink:
        found = pool.diff(mount(lower), mount(upper), sink, media_type)
    data = (tmp_path / "blob").read_bytes()
    assert found == Descriptor(media_type, digest(data), len(data), {"diff-id": digest(changes(lower, upper))})  # type: ignore[arg-type]
    (tmp_path / "again").mkdir()
    with open(tmp_path / "whole", "wb") as sink:
        pool.diff((), mount(upper), sink, media_type)
    unpack(tmp_path / "again", (tmp_path / "whole").read_bytes())
    assert tree(tmp_path / "again", times=True) == tree(upper, times=True)
    pool.close()


@pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])
def test_what_a_container_changed(tmp_path: Path, snapshotter: str) -> None:
    """Both snapshotters give the same layer for the same change."""
    from support.images_area import image_layout, mounted, pack

    image_layout(tmp_path / "l", [BASE])
    with world(tmp_path / "w", snapshotter) as made:
        ready = made.images.ensure(f"archive:{pack(tmp_path / 'l', tmp_path / 'x.tar')}", made.drivers)
        take = made.drivers.snapshotter
        mounts = take.prepare("c", ready.chain_id, SnapshotOptions())
        with mounted(mounts, tmp_path / "m") as root:
            (root / "d/2").unlink()
            shutil.rmtree(root / "d/sub")
            (root / "d/sub").mkdir()
            (root / "d/new").write_bytes(b"n")
            for path in ("d/new", "d/sub", "d", "."):
                os.utime(root / path, (9, 9))
        with open(tmp_path / "blob", "wb") as sink:
            found = made.workers.diff(
                take.view("v", ready.chain_id), mounts, sink, "application/vnd.oci.image.layer.v1.tar"
            )
    data = (tmp_path / "blob").read_bytes()
    assert set(listed(data)) == {".", "d", "d/.wh.2", "d/new", "d/sub", "d/sub/.wh.x"}
    assert found.annotations == {"diff-id": found.digest}


# -- hard links ------------------------------------------------------------------------------------------------------------


def _copied(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", source, target], check=True, timeout=60)
    return target


def _link_new(root: Path) -> None:
    os.link(root / "m", root / "z")


def _link_before(root: Path) -> None:
    os.link(root / "m", root / "a")


def _link_and_change(root: Path) -> None:
    os.link(root / "m", root / "d/m")
    (root / "m").write_text("changed")


def _join(root: Path) -> None:
    os.unlink(root / "twin")
    os.link(root / "m", root / "twin")


def _part(root: Path) -> None:
    os.unlink(root / "two")
    (root / "two").write_text("two")


def _third_name(root: Path) -> None:
    os.link(root / "one", root / "three")


@pytest.mark.parametrize("change", [_link_new, _link_before, _link_and_change, _join, _part, _third_name])
def test_files_of_several_names(tmp_path: Path, change: Callable[[Path], None]) -> None:
    old = tmp_path / "old"
    (old / "d").mkdir(parents=True)
    for name in ("m", "twin", "one"):
        (old / name).write_text("same")
        os.utime(old / name, ns=(5, 5))
    os.link(old / "one", old / "two")
    new = _copied(old, tmp_path / "new")
    change(new)
    layer = changes(old, new)
    applied = _copied(old, tmp_path / "applied")
    unpack(applied, layer)
    assert tree(applied) == tree(new)
    apart = tmp_path / "apart"
    apart.mkdir()
    unpack(apart, layer)  # each link's target is in the layer itself


@pytest.mark.parametrize("seed", range(12))
def test_a_difference_applied_is_the_other_tree(tmp_path: Path, seed: int) -> None:
    now = tmp_path / "0"
    now.mkdir()
    for number, members in enumerate(Generator(seed).layers(4), start=1):
        following = _copied(now, tmp_path / str(number))
        unpack(following, tar(*members))
        applied = _copied(now, tmp_path / f"applied-{number}")
        unpack(applied, changes(now, following))
        assert tree(applied, times=True) == tree(following, times=True)
        now = following
