"""snapshotter.overlayfs beyond the contract: options, the root of a merged tree, and what crashes leave."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.images_area import mounted
from wherry.api import FailedPrecondition, Invalid, NotFound, SnapshotOptions
from wherry.testing.harness import LocalContext
from wherry_plugins.snapshotter import overlayfs
from wherry_plugins.snapshotter.overlayfs import OverlayConfig
from wherry_plugins.snapshotter.overlayfs.snapshotter import OverlaySnapshotter

Open = Callable[..., OverlaySnapshotter]


@pytest.fixture
def open_driver(tmp_path: Path) -> Iterator[Open]:
    opened: list[OverlaySnapshotter] = []

    def make(**options: Any) -> OverlaySnapshotter:
        for driver in opened:
            driver.close()
        context = LocalContext("snapshotter.overlayfs", tmp_path / "root", tmp_path / "run")
        opened[:] = [OverlaySnapshotter(OverlayConfig(**options), context)]
        return opened[0]

    yield make
    for driver in opened:
        driver.close()


def numbers(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "root/snapshots"))


def layer(driver: OverlaySnapshotter, name: str, parent: str, *files: str) -> None:
    (mount,) = driver.prepare(f"{name}-key", parent, SnapshotOptions(volatile=False))
    upper = mount.source if mount.type == "bind" else _option(mount.options, "upperdir")
    for file in files:
        Path(upper, file).write_text(name)
    driver.commit(name, f"{name}-key", {})


def _option(options: tuple[str, ...], name: str) -> str:
    return next(option.partition("=")[2] for option in options if option.startswith(f"{name}="))


def test_layers_lie_over_each_other(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    layer(driver, "one", "", "a", "b")
    layer(driver, "two", "one", "b", "c")
    with mounted(driver.prepare("c", "two"), tmp_path / "m") as root:
        assert {path.name: path.read_text() for path in root.iterdir()} == {"a": "one", "b": "two", "c": "two"}
    with mounted(driver.view("v", "two"), tmp_path / "v") as root:
        assert (root / "b").read_text() == "two"
        with pytest.raises(OSError, match=r"[Rr]ead-only"):
            (root / "x").write_text("")
    (mount,) = driver.view("w", "one")
    assert (mount.type, mount.options) == ("bind", ("rbind", "ro"))


def test_the_root_looks_like_its_parents(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    (mount,) = driver.prepare("k", "")
    os.chown(mount.source, 5, 6)
    os.chmod(mount.source, 0o1751)
    os.utime(mount.source, ns=(7, 8_000_000_009))
    driver.commit("base", "k", {})
    for _again in range(2):
        with mounted(driver.prepare("c", "base"), tmp_path / "m") as root:
            found = root.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o1751, 5, 6)
            assert found.st_mtime_ns == 8_000_000_009
        driver.remove("c")
        driver = open_driver()


def test_mounts_are_the_same_after_a_restart(open_driver: Open) -> None:
    driver = open_driver()
    layer(driver, "one", "")
    layer(driver, "two", "one")
    made = driver.prepare("c", "two"), driver.view("v", "two")
    driver = open_driver()
    assert (driver.mounts("c"), driver.mounts("v")) == made
    with pytest.raises(FailedPrecondition):
        driver.mounts("two")


def test_options_follow_the_config(open_driver: Open) -> None:
    driver = open_driver(index=True, metacopy=True, redirect_dir=True, xino="on", volatile=True)
    layer(driver, "one", "")
    (mount,) = driver.prepare("c", "one")
    assert {"index=on", "metacopy=on", "redirect_dir=on", "xino=on", "volatile"} <= set(mount.options)
    (mount,) = driver.prepare("u", "one", SnapshotOptions(volatile=False))
    assert "volatile" not in mount.options, "a layer's files have to reach the disk"
    driver = open_driver()
    (mount,) = driver.prepare("d", "one")
    assert {"index=off", "metacopy=off", "redirect_dir=off"} <= set(mount.options)


def test_what_is_mounted_once_is_not_synced(open_driver: Open) -> None:
    driver = open_driver()
    layer(driver, "one", "")
    once = SnapshotOptions(labels={"run": "1"}, durable=False, volatile=True)
    made = driver.prepare("c", "one", once)
    assert "volatile" in made[0].options
    assert "volatile" not in driver.prepare("d", "one", SnapshotOptions(durable=False))[0].options
    driver = open_driver()
    assert driver.mounts("c") == made
    driver.commit("kept", "c", {})
    assert driver.stat("kept").labels == {}, "those of the work ended with it"


def test_a_prepare_that_was_cut_short_leaves_its_number_usable(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    layer(driver, "one", "")
    (tmp_path / "root/snapshots/2/fs/old").mkdir(parents=True)  # made, and the row never committed
    (mount,) = driver.prepare("c", "one")
    assert os.listdir(_option(mount.options, "upperdir")) == []


def test_a_failed_prepare_leaves_nothing(open_driver: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = open_driver()
    layer(driver, "one", "")
    real = os.mkdir

    def full(path: Any, *args: Any, **options: Any) -> None:
        if str(path).endswith("/work"):
            raise OSError(28, "no space left on device", path)
        real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        with pytest.raises(OSError, match="no space"):
            driver.prepare("c", "one")
    with pytest.raises(NotFound):
        driver.stat("c")
    assert numbers(tmp_path) == {"1"}
    driver.prepare("c", "one")


def test_what_remove_leaves_goes_soon_and_with_cleanup(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    layer(driver, "one", "")
    (mount,) = driver.prepare("c", "one")
    upper = Path(_option(mount.options, "upperdir"))
    for number in range(200):
        (upper / str(number)).write_bytes(b"x" * 5000)
    with pytest.raises(OSError, match=r"[Nn]ot empty"):
        os.rmdir(upper)
    driver.remove("c")
    driver.remove("c")
    assert driver.cleanup() > 200 * 4096
    assert numbers(tmp_path) == {"1"}
    assert driver.cleanup() == 0


def test_cleanup_takes_what_no_row_names(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    layer(driver, "one", "", "kept")
    (tmp_path / "root/snapshots/77/fs").mkdir(parents=True)
    (tmp_path / "root/snapshots/77/fs/file").write_bytes(b"x" * 10_000)
    assert driver.cleanup() >= 10_000
    assert numbers(tmp_path) == {"1"}


def test_what_an_engine_left_goes_when_the_next_one_opens(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    layer(driver, "one", "", "kept")
    (tmp_path / "root/snapshots/77/fs/deep").mkdir(parents=True)
    open_driver()._trash.empty()
    assert numbers(tmp_path) == {"1"}


def test_numbers_are_never_used_again(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    (first,) = driver.prepare("a", "")
    driver.remove("a")
    driver = open_driver()
    (second,) = driver.prepare("a", "")
    assert first.source != second.source


def test_usage_is_of_one_layer_and_counts_links_once(open_driver: Open) -> None:
    driver = open_driver()
    (mount,) = driver.prepare("k", "")
    Path(mount.source, "a").write_bytes(b"x" * 100_000)
    os.link(Path(mount.source, "a"), Path(mount.source, "b"))
    driver.commit("one", "k", {})
    size, inodes = driver.usage("one")
    assert 100_000 <= size < 150_000
    assert inodes == 2
    driver.prepare("c", "one")
    assert driver.usage("c")[0] < 20_000
    driver.view("v", "one")
    assert driver.usage("v") == (0, 0)


def test_what_it_can_not_do(open_driver: Open) -> None:
    driver = open_driver()
    for options in (SnapshotOptions(quota=1),):
        with pytest.raises(Invalid, match="quota"):
            driver.prepare("c", "", options)
    for key in ("", "x" * 1025, "a\0b"):
        with pytest.raises(Invalid):
            driver.prepare(key, "")


def test_the_probe_says_why_not(tmp_path: Path) -> None:
    def probe(path: Path, **options: Any) -> str | None:
        context = LocalContext("snapshotter.overlayfs", path, tmp_path / "run")
        return overlayfs.wherry_snapshotter().probe(OverlayConfig(**options), context)

    assert probe(tmp_path / "root") is None
    assert "character" in str(probe(tmp_path / "a:b"))
    assert "xino" in str(probe(tmp_path / "root", xino="yes"))
    driver = OverlaySnapshotter(OverlayConfig(), LocalContext("x", tmp_path / "lower", tmp_path / "run"))
    layer(driver, "one", "")
    with mounted(driver.prepare("c", "one"), tmp_path / "m") as root:
        assert "overlay" in str(probe(root / "state"))
    driver.close()


def test_an_error_in_the_trash_stops_nobody(open_driver: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = open_driver()
    driver.prepare("a", "")
    driver.prepare("b", "")

    def broken(name: str) -> int:
        raise RecursionError

    with monkeypatch.context() as patch:
        patch.setattr(driver._trash, "_erase", broken)
        driver.remove("a")
        driver._trash.empty()
        driver.remove("b")
        driver._trash.empty()
    assert numbers(tmp_path) == {"1", "2"}
    driver.cleanup()
    assert numbers(tmp_path) == set()


def test_a_number_that_was_rolled_back_is_not_deleted_under_its_next_owner(open_driver: Open, tmp_path: Path) -> None:
    driver = open_driver()
    layer(driver, "one", "")
    (tmp_path / "root/snapshots/2/fs/old").mkdir(parents=True)  # a prepare that a crash took back: 2 comes again
    driver = open_driver()
    (mount,) = driver.prepare("c", "one")
    upper = Path(_option(mount.options, "upperdir"))
    (upper / "mine").touch()
    driver.cleanup()
    assert upper.parent.name == "2"
    assert os.listdir(upper) == ["mine"]
    assert numbers(tmp_path) == {"1", "2"}
