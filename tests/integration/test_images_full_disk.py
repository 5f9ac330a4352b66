"""A full disk: what brings images in says so and leaves the store sound; what takes them away works with no byte free."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.disks import small_disk
from support.engines import EngineDirs
from support.full_disk import MIB
from support.images_area import image_layout, pack
from support.layers import directory, member, tar
from wherry.engine.state.reserve import SIZE, DiskReserve

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB of its own."""
    with small_disk(tmp_path, 48 * MIB) as at:
        yield at


def engine(verb: str, disk: Path, dirs: EngineDirs, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "support.full_disk", verb, str(disk), str(dirs.run), *more]
    return subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=100, check=False)


def archive(directory_: Path, name: str, size: int) -> str:
    layer = tar(directory("d"), *(member(f"d/{n}", data=os.urandom(size // 8)) for n in range(8)))
    image_layout(directory_ / name, [tar(member(f"of-{name}", data=os.urandom(1000))), layer])
    return f"archive:{pack(directory_ / name, directory_ / f'{name}.tar')}"


@pytest.mark.parametrize("left", [0, 40 << 10, 1 << 20, 5 << 20, 9 << 20])
def test_what_does_not_fit_is_refused_and_leaves_nothing_broken(
    disk: Path, engine_dirs: EngineDirs, tmp_path: Path, left: int
) -> None:
    """At the lease, at a document, at a layer, while unpacking: wherever it ends, it says why; with room it goes on."""
    small, big = archive(tmp_path, "small", 8000), archive(tmp_path, "big", 6 * MIB)
    done = engine("bring", disk, engine_dirs, small, big, str(left))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("keep", ["reserve", ""], ids=["reserve", "twin"])
def test_deleting_works_with_no_byte_free(
    disk: Path, engine_dirs: EngineDirs, busybox_archive: Path, tmp_path: Path, keep: str
) -> None:
    small = archive(tmp_path, "small", 8000)
    done = engine("prepare", disk, engine_dirs, f"archive:{busybox_archive}", small, keep)
    assert done.returncode == 0, done.stderr
    done = engine("make_room", disk, engine_dirs, keep)
    if keep:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert "full" in done.stderr or "No space left" in done.stderr


def test_the_reserve_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low: list[bool] = [False]
    monkeypatch.setattr(DiskReserve, "_is_low", lambda self: low[0])
    reserve, path = DiskReserve(tmp_path), tmp_path / "reserve"
    with reserve.used():
        assert not path.exists()
    assert path.stat().st_blocks * 512 >= SIZE
    low[0] = True
    with reserve.used(), reserve.used():
        assert not path.exists()
    assert not path.exists(), "it would make the disk full again"
    low[0] = False
    with reserve.used():
        assert not path.exists()
    assert path.exists()

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    path.unlink()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with reserve.used():
        pass
    assert not path.exists()
