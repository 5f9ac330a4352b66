"""Unpacking that ends at any step, by a kill or by a full disk: a typed error, a sound state, and the next attempt succeeds."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import disks
from support.images_area import World, image_layout, mounted, world
from support.layers import digest, directory, hard, link, member, tar, tree
from wherry.api import Error, Mount, Unavailable
from wherry.engine.workers import zygote

ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))
BOTH = pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])

LAYERS = [
    tar(
        directory("./", mtime=9), directory("d", mtime=8), member("d/1", data=b"1" * 3000, mode=0o4755, uid=7), member("d/2"),
        hard("d/3", "d/1"), link("l", "d"), member("x", pax_headers={"SCHILY.xattr.user.a": "b"}), directory("e"), member("e/f"),
    ),
    tar(directory("d"), member("d/.wh.2"), member("d/new", data=b"n"), directory("e"), member("e/.wh..wh..opq"), member("e/g")),
    tar(hard("second", "d/1"), member("l/through", data=b"t"), member(".wh.x")),
]  # fmt: skip
#: What a worker changes by; each is one step at which it may end. Beside openat: at its fork the interpreter makes that call as well,
#: and what it leaves is what the call after it finds.
CALLS = (
    "mkdirat", "write", "fchown", "fchmod", "utimensat", "linkat", "symlinkat", "mknodat,mknod", "fsetxattr",
    "unlinkat", "pivot_root", "move_mount", "fsmount",
)  # fmt: skip
OVERLAY_ONLY = ("fsmount", "mknodat,mknod")


@contextmanager
def killing(made: World, log: Path, calls: str, when: int) -> Iterator[None]:
    """Workers die at their when-th call."""
    linger, zygote._LINGER = zygote._LINGER, 60.0  # the tracer is to find it
    made.workers.usage(
        (Mount("bind", str(log.parent), "", ("bind", "ro")),)
    )  # whoever forks them is there and has loaded all
    stem = made.workers._nursery._stem
    assert stem is not None
    inject = [f"--trace={calls}", f"--inject={calls}:signal=KILL:when={when}"]
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", str(log), *inject, "-p", str(stem[0])])
    try:
        deadline = time.monotonic() + 30
        while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{stem[0]}/status").read_text():
            assert time.monotonic() < deadline
            assert tracer.poll() is None
            time.sleep(0.005)
        yield
    finally:
        zygote._LINGER = linger
        made.workers._nursery.rest()
        tracer.wait(30)


def ended(made: World, source: str) -> bool:
    """Whether a worker was killed on the way."""
    try:
        made.images.ensure(source, made.drivers)
    except Unavailable:
        return True
    return False


def sound(made: World, wanted: set[str]) -> None:
    """Nothing half done is left to be seen, and rows and directories match."""
    infos = list(made.drivers.snapshotter.walk())
    assert {info.kind for info in infos} <= {"committed"}
    assert {info.name for info in infos} <= wanted
    made.drivers.snapshotter.cleanup()
    (directory,) = made.root.glob("snapshotter/*/snapshots")
    assert len(os.listdir(directory)) == len(infos)


def chain(layers: list[bytes]) -> set[str]:
    names = [digest(layers[0])]
    for layer in layers[1:]:
        names.append(digest(f"{names[-1]} {digest(layer)}".encode()))
    return set(names)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: contrib/setup test")
@pytest.mark.timeout(3600 if ALL else 120)
@BOTH
def test_a_worker_killed_at_each_step(tmp_path: Path, snapshotter: str) -> None:
    image_layout(tmp_path / "l", LAYERS)
    source = f"layout:{tmp_path / 'l'}"
    with world(tmp_path / "reference", snapshotter) as made:
        ready = made.images.ensure(source, made.drivers)
        with mounted(made.drivers.snapshotter.view("look", ready.chain_id), tmp_path / "look") as root:
            wanted = tree(root, times=True)
    kills = 0
    with world(tmp_path / "w", snapshotter) as made:
        for calls in CALLS if ALL else CALLS[::4] if snapshotter == "vfs" else CALLS[1::3]:
            when = 1
            while True:
                log = tmp_path / "strace"
                with killing(made, log, calls, when):
                    if not ended(made, source):
                        break
                kills += 1
                sound(made, chain(LAYERS))
                when = when * 2 if not ALL else when + 1 + when // 8
                made.images.remove(source) if kills % 2 == 0 and list(made.drivers.store.list()) else None
            assert when > 1 or (snapshotter == "vfs" and calls in OVERLAY_ONLY), f"no worker died at {calls}"
            made.images.ensure(source, made.drivers)
            with mounted(made.drivers.snapshotter.view("look", ready.chain_id), tmp_path / "look") as root:
                assert tree(root, times=True) == wanted
            made.drivers.snapshotter.remove("look")
            made.images.remove(source)
            made.images.gc()
            sound(made, set())
    assert kills >= 5


# -- a full disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """12 MiB of ext4 on a loop device."""
    with disks.small_disk(tmp_path, 12 << 20) as at:
        yield at


def _pack(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


@BOTH
def test_a_full_disk(tmp_path: Path, small_disk: Path, snapshotter: str) -> None:
    good = tar(directory("d"), member("d/f", data=b"x" * 10_000))
    # Larger than the disk, and a few kilobytes in the store; one by its bytes, one by its number of files.
    large = tar(directory("e"), member("e/large", data=bytes(30 << 20)))
    many = tar(*(member(f"{number}") for number in range(5000)))
    image_layout(tmp_path / "good", [good])
    with world(small_disk / "w", snapshotter) as made:
        kept = made.images.ensure(f"layout:{tmp_path / 'good'}", made.drivers).chain_id
        for name, layer in (("large", large), ("many", many)):
            image_layout(tmp_path / name, [_pack(good), _pack(layer)], diff_ids=[digest(good), digest(layer)])
            with pytest.raises((OSError, Error)) as caught:
                made.images.ensure(f"layout:{tmp_path / name}", made.drivers)
            assert getattr(caught.value, "errno", errno.ENOSPC) == errno.ENOSPC, caught.value
            sound(made, {kept})
        assert made.images.gc().blobs, "what the failed images had fetched"
        made.images.remove(f"layout:{tmp_path / 'good'}")
        made.images.gc()
        sound(made, set())
        assert made.images.ensure(f"layout:{tmp_path / 'good'}", made.drivers).chain_id == kept
        with mounted(made.drivers.snapshotter.view("look", kept), tmp_path / "look") as root:
            assert (root / "d/f").read_bytes() == b"x" * 10_000
