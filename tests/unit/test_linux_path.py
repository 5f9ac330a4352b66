"""Look-ups that cannot leave a root, beside a neighbour who swaps its parts; each with the naive way, which does leave."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wherry.linux import path
from wherry.linux.syscall import Int, Text, Uint, bind


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_links_and_dots_end_at_the_root(root: int, tmp_path: Path) -> None:
    top = tmp_path / "root"
    (top / "absolute").symlink_to("/etc")
    (top / "dots").symlink_to("../../../../etc")
    for name in ("/absolute", "dots", "../etc", "/../../etc", "etc/.", "//etc"):
        assert name_of(path.open_in(root, name)) == str(top / "etc"), name


def test_magic_links_are_refused(tmp_path: Path) -> None:
    fd = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError, match=r"Too many levels") as caught:
            path.open_in(fd, "proc/self/root")
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(fd)


def test_directories_are_made_in_the_root(root: int, tmp_path: Path) -> None:
    top = tmp_path / "root"
    (top / "away").symlink_to(tmp_path / "outside")
    (top / "run").symlink_to("var/run")
    assert name_of(path.make_directories(root, "a/b/c")) == str(top / "a/b/c")
    assert name_of(path.make_directories(root, "/run/x")) == str(top / "var/run/x")
    assert name_of(path.make_directories(root, "/away/x")) == str(top) + str(tmp_path / "outside/x")
    assert list((tmp_path / "outside").iterdir()) == []


def test_what_cannot_be_made(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/file").write_text("")
    (tmp_path / "root/loop").symlink_to("loop/x")
    for name, number in (("file/x", errno.ENOTDIR), ("missing/../x", errno.ENOENT), ("loop/y", errno.ELOOP)):
        with pytest.raises(OSError, match=r".") as caught:
            path.make_directories(root, name)
        assert caught.value.errno == number, name


def test_targets_of_files(root: int, tmp_path: Path) -> None:
    assert name_of(path.make_target(root, "etc/new/file", directory=False)) == str(tmp_path / "root/etc/new/file")
    assert (tmp_path / "root/etc/new/file").read_bytes() == b""
    with pytest.raises(IsADirectoryError):
        path.make_target(root, "etc", directory=False)


def test_targets_of_files_behind_links_that_lead_nowhere(root: int, tmp_path: Path) -> None:
    """As /etc/resolv.conf of an image that was made on a system with systemd-resolved."""
    top = tmp_path / "root"
    (top / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (top / "etc/away").symlink_to(tmp_path / "outside/made")
    (top / "etc/up").symlink_to("../../../../../.." + str(tmp_path / "outside/made"))
    (top / "etc/chain").symlink_to("away2")
    (top / "etc/away2").symlink_to("/var/end")
    (top / "etc/loop").symlink_to("loop")
    for name, end in (
        ("etc/resolv.conf", top / "run/systemd/resolve/stub-resolv.conf"),
        ("etc/away", Path(f"{top}{tmp_path}/outside/made")),
        ("etc/up", Path(f"{top}{tmp_path}/outside/made")),
        ("/etc/chain", top / "var/end"),
    ):
        assert name_of(path.make_target(root, name, directory=False)) == str(end)
        assert end.read_bytes() == b""
    assert list((tmp_path / "outside").iterdir()) == []
    with pytest.raises(OSError, match=r"symbolic links"):
        path.make_target(root, "etc/loop", directory=False)


def test_below_refuses_links_and_mounts() -> None:
    fd = os.open("/proc", os.O_PATH)
    try:
        with pytest.raises(OSError, match=r"symbolic links"):
            path.open_below(fd, "self/status", os.O_RDONLY)
        with pytest.raises(OSError, match=r"cross-device"):
            path.open_below(fd, "../etc/passwd", os.O_RDONLY)
        os.close(path.open_below(fd, f"{os.getpid()}/status", os.O_RDONLY))
    finally:
        os.close(fd)


def test_filesystem_types() -> None:
    for name, magic in (("/proc", path.PROC_MAGIC), ("/sys", path.SYSFS_MAGIC)):
        fd = os.open(name, os.O_PATH)
        try:
            assert path.filesystem(fd) == magic
        finally:
            os.close(fd)


_exchange = bind("renameat2", Int, Text, Int, Text, Uint)


@contextmanager
def swapping(top: Path, outside: Path) -> Iterator[None]:
    """A neighbour exchanges a directory of the root for a link out of it, and back, as fast as it can."""
    (top / "part").mkdir()
    (top / "spare").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            _exchange(-100, os.fsencode(top / "part"), -100, os.fsencode(top / "spare"), 2)  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def race(top: Path, make: Callable[[int], None], tries: int, enough: Callable[[], bool]) -> None:
    for index in range(tries):
        try:
            make(index)
        except OSError:
            continue
        if enough():
            return


def test_a_swapped_part_leads_nowhere(root: int, tmp_path: Path) -> None:
    """CVE-2021-30465, CVE-2024-45310."""
    top, outside = tmp_path / "root", tmp_path / "outside"
    with swapping(top, outside):
        race(top, lambda index: os.close(path.make_directories(root, f"part/d{index}")), 3000, lambda: False)
        race(
            top, lambda index: os.close(path.make_target(root, f"part/f{index}", directory=False)), 2000, lambda: False
        )
    assert list(outside.iterdir()) == []


def test_a_swapped_part_leads_nowhere_twin(root: int, tmp_path: Path) -> None:
    top, outside = tmp_path / "root", tmp_path / "outside"
    with swapping(top, outside):
        race(top, lambda index: os.mkdir(top / f"part/d{index}"), 200_000, lambda: any(outside.iterdir()))
    assert list(outside.iterdir())
