"""The copy-up of a volume, killed at each call that changes a thing: the next one makes it whole; nothing else is taken for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.killing import Steps
from support.layers import tree
from wherry.layers import copyup
from wherry.layers.apply import apply
from wherry.layers.diff import diff
from wherry.layers.paths import COPIED, COPYING, begun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="keeps owners")
CALLS = (
    "mkdir",
    "rename",
    "unlink",
    "rmdir",
    "chmod",
    "fchmod",
    "chown",
    "fchown",
    "utime",
    "link",
    "symlink",
    "setxattr",
    "fsync",
)
Fill = Callable[..., object]


def fill(top: Path, copy: Fill = copyup.copy_up, path: str = "data") -> None:
    """As a worker does it."""
    (top / "empty").mkdir(exist_ok=True)
    image, volume, empty = (os.open(top / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("image", "volume", "empty"))
    with tempfile.TemporaryFile(dir=top) as stream:
        copy(image, path, volume, empty, stream, devices=False)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    data = tmp_path / "image" / "data"
    (data / "a" / "b").mkdir(parents=True)
    (data / "a" / "one").write_text("one")
    os.link(data / "a" / "one", data / "two")
    os.chmod(data / "two", 0o640)
    os.symlink("a/one", data / "link")
    os.chown(data / "a", 7, 8)
    os.chown(data, 999, 998)
    os.chmod(data, 0o750)
    os.setxattr(data, "user.x", b"y")
    return tmp_path


def child(work: Callable[[], None]) -> int:
    """What waitpid(2) says of a process that does it."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def killed_at_each_call(top: Path, copy: Fill) -> None:
    whole = tree(top / "image" / "data")
    for at in range(1, 200):
        volume = top / "volume"
        volume.mkdir()

        def work(at: int = at) -> None:
            steps = Steps(at)
            for name in CALLS:
                steps.wrap(os, name)
            fill(top, copy)

        if not (status := child(work)):
            assert tree(volume) == whole
            assert at > 15
            return
        assert os.WIFSIGNALED(status)
        names = set(os.listdir(volume))
        assert begun(str(volume)) or not names or names == set(os.listdir(top / "image" / "data")), at
        assert child(lambda: fill(top, copy)) == 0
        assert tree(volume) == whole, at
        os.rename(volume, top / f"volume-{at}")
    raise AssertionError("it has no end")


def test_killed_at_each_call(image: Path) -> None:
    killed_at_each_call(image, copyup.copy_up)


def test_twin_unpacked_in_its_place(image: Path) -> None:
    def in_place(image: int, path: str, volume: int, empty: int, stream: Any, *, devices: bool) -> None:
        if not os.listdir(volume):
            diff(empty, os.open(path, os.O_RDONLY, dir_fd=image), stream.write)
            stream.seek(0)
            apply(volume, stream, devices=devices)

    with pytest.raises(AssertionError):
        killed_at_each_call(image, in_place)


def test_twin_moved_up_before_it_is_renamed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name for both stages: what is taken away was moved up in part."""
    monkeypatch.setattr(copyup, "COPIED", COPYING)
    with pytest.raises(AssertionError):
        killed_at_each_call(image, copyup.copy_up)


@pytest.mark.parametrize("left", [COPYING, COPIED])
def test_what_a_container_wrote_meanwhile_stays(image: Path, left: str) -> None:
    (image / "volume" / left).mkdir(parents=True)
    for name in ("two", f"{left}/two", f"{left}/three"):
        (image / "volume" / name).write_text(name)
    fill(image)
    found = {path.name: path.read_text() for path in (image / "volume").iterdir()}
    assert found == {"two": "two"} | ({"three": f"{left}/three"} if left == COPIED else {})


def test_without_a_path_it_takes_away_what_was_left(image: Path) -> None:
    (image / "volume" / COPYING / "x").mkdir(parents=True)
    fill(image, path="")
    assert os.listdir(image / "volume") == []


@pytest.mark.parametrize("path", ["absent", "data/two"])
def test_nothing_to_copy(image: Path, path: str) -> None:
    (image / "volume").mkdir()
    fill(image, path=path)
    assert os.listdir(image / "volume") == []
