"""Layers whose writes were lost are no layers: who hears of the error, what goes, and who waits for whom."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.images_area import image_layout, pack, world
from support.layers import digest, directory, member, tar
from support.tools import need
from wherry.api import Invalid, NotFound, SnapshotInfo
from wherry.engine.images import unpack as unpacking
from wherry.engine.images import writeback
from wherry.engine.images.incoming import IncomingLayers
from wherry.engine.images.unpack import UNSYNCED, Unpacker, _Job
from wherry.engine.images.writeback import WriteBack
from wherry.linux.path import syncfs

LAYERS = [tar(directory("d"), member(f"d/{number}", data=b"x" * 1000)) for number in range(3)]


@pytest.fixture
def archive(tmp_path: Path) -> str:
    image_layout(tmp_path / "layout", LAYERS)
    return f"archive:{pack(tmp_path / 'layout', tmp_path / 'x.tar')}"


def failing(fd: int) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])
def test_layers_go_when_the_disk_lost_them(tmp_path: Path, archive: str, snapshotter: str, monkeypatch: Any) -> None:
    with world(tmp_path / "w", snapshotter) as made:
        with monkeypatch.context() as patch:
            patch.setattr(writeback, "syncfs", failing)
            with pytest.raises(OSError, match="Input/output"):
                made.images.ensure(archive, made.drivers)
        before = {info.name: info.created for info in made.drivers.snapshotter.walk()}
        ready = made.images.ensure(archive, made.drivers)
        after = {info.name: info.created for info in made.drivers.snapshotter.walk()}
        assert len(before) == len(LAYERS)
        assert before.keys() == after.keys()
        assert not before.items() & after.items(), "each was made anew"
        assert UNSYNCED not in made.drivers.snapshotter.stat(ready.chain_id).labels


def test_an_error_reaches_layers_in_the_making(tmp_path: Path, archive: str, monkeypatch: Any) -> None:
    with world(tmp_path / "w", "vfs") as made:
        real = made.workers.unpack

        def meanwhile(*args: Any, **more: Any) -> Any:
            with monkeypatch.context() as patch, contextlib.suppress(OSError):
                patch.setattr(writeback, "syncfs", failing)
                made.images._unpacker._disks["vfs"].sync()
            return real(*args, **more)

        monkeypatch.setattr(made.workers, "unpack", meanwhile)
        with pytest.raises(OSError, match="lost writes"):
            made.images.ensure(archive, made.drivers)
        assert list(made.drivers.snapshotter.walk()) == []


def test_a_lost_layer_takes_what_stands_on_it(tmp_path: Path, archive: str) -> None:
    with world(tmp_path / "w") as made:
        ready = made.images.ensure(archive, made.drivers)
        driver = made.drivers.snapshotter
        chain = [ready.chain_id]
        while parent := driver.stat(chain[0]).parent:
            chain.insert(0, parent)
        disk = made.images._unpacker._disks["overlayfs"]
        created = {name: driver.stat(name).created for name in chain}
        driver.update(chain[1], {UNSYNCED: "of a sync that failed"})
        driver.update(chain[2], {UNSYNCED: disk.word})  # begun after the error, over what was lost
        made.images._unpacker._sound.clear()
        assert made.images.ensure(archive, made.drivers).chain_id == chain[2]
        assert [driver.stat(name).created == created[name] for name in chain] == [True, False, False]


# -- who hears of it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system whose disk takes a part only of what it says it can hold: writes fail when they are written back."""
    need("mkfs.ext4")
    small, at = tmp_path / "small", tmp_path / "at"
    for path in (small, at):
        path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=True, timeout=30)
    device = ""
    try:
        image = small / "image"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        options = ["-q", "-F", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1,nodiscard", "-N", "256"]
        subprocess.run(["mkfs.ext4", *options, image], check=True, capture_output=True, timeout=60)
        looped = subprocess.run(
            ["losetup", "-f", "--show", image], capture_output=True, text=True, check=False, timeout=30
        )
        if looped.returncode:
            pytest.skip(f"no loop device: {looped.stderr.strip()}")
        device = looped.stdout.strip()
        subprocess.run(["mount", "-t", "ext4", "-o", "errors=continue", device, at], check=True, timeout=30)
        try:
            yield at
        finally:
            subprocess.run(["umount", at], check=True, timeout=60)
    finally:
        if device:
            subprocess.run(["losetup", "-d", device], check=True, timeout=30)
        subprocess.run(["umount", small], check=True, timeout=30)


def _write_too_much(disk: Path) -> None:
    with (disk / "large").open("wb") as file:
        file.write(os.urandom(1 << 20) * 16)


def _somebody_elses_sync(disk: Path) -> bool:
    """What a backup, another engine, or a database on the same disk does all the time. Whether it was told of the loss."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_an_error_is_heard_though_another_heard_it_first(failing_disk: Path) -> None:
    ours = WriteBack(failing_disk)
    word = ours.word
    _write_too_much(failing_disk)
    assert _somebody_elses_sync(failing_disk)
    with pytest.raises(OSError, match="Input/output|No space"):
        ours.sync()
    assert ours.word != word
    with pytest.raises(OSError, match="lost writes"), ours.sound(word):
        pass
    with ours.sound(ours.word):
        pass
    ours.sync()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_twin_that_opens_when_it_syncs(failing_disk: Path) -> None:
    _write_too_much(failing_disk)
    assert _somebody_elses_sync(failing_disk)
    WriteBack(failing_disk).sync()  # hears nothing


# -- two first callers -----------------------------------------------------------------------------------------------------


class Rows:
    """A snapshotter with one layer of an earlier boot. The first to walk is held until the other one is through, or can't be."""

    patience = 0.5  # seconds: where a lock holds the other one, nothing comes

    def __init__(self) -> None:
        self.infos = {"layer": SnapshotInfo("committed", "layer", "", {UNSYNCED: "an earlier boot"}, 1, 1)}
        self.through = threading.Event()
        self.first = threading.Lock()

    def walk(self) -> Iterator[SnapshotInfo]:
        infos = list(self.infos.values())
        if self.first.acquire(blocking=False):
            self.through.wait(self.patience)
        return iter(infos)

    def remove(self, name: str) -> None:
        self.infos.pop(name, None)

    def stat(self, name: str) -> SnapshotInfo:
        if name not in self.infos:
            raise NotFound(name, "gone")
        return self.infos[name]


def _first_unpacks(tmp_path: Path) -> bool:
    """Two at once, each clearing and then unpacking its layer; whether that of the second is still there in the end."""
    rows = Rows()
    unpacker = Unpacker(type("Kernel", (), {"root": tmp_path})(), None, lambda *_: None)  # type: ignore[arg-type]
    (tmp_path / "snapshotter/x").mkdir(parents=True)
    drivers: Any = type("Drivers", (), {"snapshotter": rows})()
    job = _Job(None, drivers, None, None, None, "x", ("layer",))  # type: ignore[arg-type]

    def unpack() -> None:
        unpacker.clear(job)
        if unpacker.find(job, "layer") is None:
            rows.infos["layer"] = SnapshotInfo("committed", "layer", "", {UNSYNCED: unpacker._disks["x"].word}, 2, 2)

    def second() -> None:
        unpack()
        rows.through.set()

    threads = [threading.Thread(target=unpack)]
    threads[0].start()
    while not rows.first.locked():
        threads[0].join(0.005)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    threads[1].join(40)
    threads[0].join(40)
    return unpacker.find(job, "layer") is not None and rows.infos["layer"].created == 2


def test_two_first_callers_leave_each_others_layers(tmp_path: Path) -> None:
    assert _first_unpacks(tmp_path)


def test_twin_without_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[int] = []
    real = Rows.remove

    def remove(self: Rows, name: str) -> None:
        removed.append(self.infos[name].created if name in self.infos else 0)
        real(self, name)

    monkeypatch.setattr(Rows, "remove", remove)
    monkeypatch.setattr(Rows, "patience", 30)
    monkeypatch.setattr(unpacking.KeyedLocks, "hold", lambda self, key: contextlib.nullcontext())
    _first_unpacks(tmp_path)
    assert 2 in removed, "a layer that was just made anew"


def test_a_mark_is_waited_out(tmp_path: Path, archive: str) -> None:
    """A collector has marked the layer that is wanted: it is made anew when it is gone."""
    with world(tmp_path / "w", "vfs") as made:
        ready = made.images.ensure(archive, made.drivers)
        driver = made.drivers.snapshotter
        before = driver.stat(ready.chain_id).created
        assert driver.mark([ready.chain_id]) == (ready.chain_id,)
        swept = threading.Thread(target=lambda: (_when_unpacked(driver), driver.sweep()))
        swept.start()
        assert made.images.ensure(archive, made.drivers).chain_id == ready.chain_id
        swept.join(30)
        assert driver.stat(ready.chain_id).created != before


def _when_unpacked(driver: Any) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if any(info.name.startswith("unpack-") for info in driver.walk()):
            return
        pause.wait(0.01)


def test_an_error_waits_for_no_layer_that_is_still_on_its_way(tmp_path: Path) -> None:
    """The first layer is not what the config says; the second one never comes."""
    image_layout(tmp_path / "wrong", LAYERS, diff_ids=["sha256:" + "0" * 64, *map(digest, LAYERS[1:])])
    arrivals = IncomingLayers([digest(LAYERS[1])])
    with world(tmp_path / "w") as made:
        made.images.load(f"layout:{tmp_path / 'wrong'}")
        (image,) = made.drivers.store.list()
        content = made.images._documents.content(made.drivers.store, image.target, "")
        with made.leases.hold() as lease, pytest.raises(Invalid, match="diff-id"):
            made.images._unpacker.unpack(content, made.drivers, lease, lambda _: None, arrivals)
        locks = made.images._unpacker._locks
        for name in content.config.chain_ids():
            with locks.hold(("overlayfs", name)):  # given back
                pass
        assert list(made.drivers.snapshotter.walk()) == []
