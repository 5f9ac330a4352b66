"""Volumes: what outlives a container, what goes with it, and what an image has at their place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import wherry
from support.engines import clear, engine_of_a_module
from support.images import BUSYBOX
from support.running import run, sh, sleeper
from wherry.api import Bind, Engine, InUse, Invalid, NotFound, RunRequest
from wherry.engine.state.locks import KeyedLocks
from wherry.engine.state.undo import Undo
from wherry.engine.volumes.volumes import Volumes
from wherry.layers.paths import COPYING
from wherry_plugins.volume import local
from wherry_plugins.volume.local import LocalConfig, LocalVolumes

pytestmark = pytest.mark.shared
BOUND = 30.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of_a_module(tmp_path_factory) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_stays(engine: Engine) -> Iterator[None]:
    yield
    clear(engine)
    engine.prune_volumes(all=True)
    assert engine.volumes() == ()
    assert engine.doctor() == ()
    assert os.listdir(engine.root / "volume" / "local") == []  # type: ignore[attr-defined]


def volume(name: str, target: str, *options: str) -> Bind:
    return Bind("volume", name, target, options)


def names(engine: Engine) -> list[str]:
    return [found.name for found in engine.volumes()]


def redis_like(path: Path) -> str:
    """An archive, as docker save writes it, of an image with the volume /data, which belongs to another user and has a file and a
    link in it; its reference."""
    if not BUSYBOX.exists():
        pytest.skip("busybox is not installed: contrib/setup test")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, kind, mode, owner in (("bin", tarfile.DIRTYPE, 0o755, 0), ("data", tarfile.DIRTYPE, 0o750, 999)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = kind, mode, owner, owner
            tar.addfile(entry)
        program = BUSYBOX.read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
        for name in ("bin/sh", "data/link"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox" if name == "bin/sh" else "first"
            tar.addfile(entry)
        entry = tarfile.TarInfo("data/first")
        entry.size, entry.mode, entry.uid, entry.gid = 5, 0o640, 999, 999
        tar.addfile(entry, io.BytesIO(b"image"))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "Volumes": {"/data": {}}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["volumes:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return f"archive:{path}"


def test_a_named_volume_outlives_its_containers(engine: Engine) -> None:
    assert sh(engine, "echo kept > /d/x", mounts=(volume("data", "/d"),)).code == 0
    assert sh(engine, "cat /e/x", mounts=(volume("data", "/e"),)).out == "kept\n"
    assert names(engine) == ["data"]
    assert engine.volume("data").mountpoint.startswith(str(engine.root))  # type: ignore[attr-defined]


def test_a_volume_may_be_read_only(engine: Engine) -> None:
    done = sh(engine, "echo x > /d/x", mounts=(volume("data", "/d", "ro"),))
    assert done.code != 0
    assert "Read-only" in done.err


def test_one_without_a_name_goes_with_a_container_that_removes_itself(engine: Engine) -> None:
    assert sh(engine, "echo x > /d/x", mounts=(volume("", "/d"),)).code == 0
    assert names(engine) == []


@pytest.mark.parametrize("volumes", [False, True])
def test_one_without_a_name_goes_when_that_is_wished(engine: Engine, volumes: bool) -> None:
    done = sh(engine, "echo kept > /d/x; cat /d/x", mounts=(volume("", "/d"), volume("data", "/e")), remove=False)
    (name,) = set(names(engine)) - {"data"}
    assert engine.volume_users(name) == (done.id,)
    engine.remove(done.id, volumes=volumes)
    assert names(engine) == (["data"] if volumes else sorted([name, "data"]))
    assert engine.prune_volumes() == (() if volumes else (name,))
    assert names(engine) == ["data"]


def test_one_is_the_same_over_a_restart_of_its_container(engine: Engine) -> None:
    done = sh(
        engine,
        "echo more >> /d/x; [ $(cat /d/x | wc -l 2>/dev/null || echo 1) ]",
        mounts=(volume("", "/d"),),
        remove=False,
    )
    (name,) = names(engine)
    engine.start(done.id)
    engine.wait(done.id, timeout=BOUND)
    assert names(engine) == [name]
    assert Path(engine.volume(name).mountpoint, "x").read_text() == "more\nmore\n"


def test_what_is_in_use_stays(engine: Engine) -> None:
    id = sleeper(engine, mounts=(volume("data", "/d"),))
    with pytest.raises(InUse, match=r'volume "data": container .* has it'):
        engine.remove_volume("data")
    assert engine.prune_volumes(all=True) == ()
    engine.remove(id, force=True)
    engine.remove_volume("data")
    with pytest.raises(NotFound):
        engine.remove_volume("data")
    engine.remove_volume("data", force=True)


def test_the_volumes_of_an_image(engine: Engine, tmp_path: Path) -> None:
    """As docker: there without being asked for, with what the image has there, owner and mode too."""
    image = redis_like(tmp_path / "image.tar")
    script = "busybox stat -c '%u:%g %a' /data /data/first; busybox cat /data/link; echo more > /data/second"
    done = run(engine, "sh", "-c", script, image=image, remove=False)
    assert done.out == "999:999 750\n999:999 640\nimage", done.err
    (name,) = names(engine)
    assert sorted(os.listdir(engine.volume(name).mountpoint)) == ["first", "link", "second"]
    (mount,) = engine.inspect(done.id)["Mounts"]
    assert (mount["Type"], mount["Name"], mount["Destination"], mount["RW"]) == ("volume", name, "/data", True)


def test_a_mount_takes_the_place_of_an_images_volume(engine: Engine, tmp_path: Path) -> None:
    image = redis_like(tmp_path / "image.tar")
    done = run(engine, "sh", "-c", "echo /data/*", image=image, mounts=(Bind("tmpfs", "tmpfs", "/data"),))
    assert done.out == "/data/*\n"
    assert (
        run(engine, "sh", "-c", "echo /data/*", image=image, mounts=(volume("data", "/data", "nocopy"),)).out
        == "/data/*\n"
    )
    assert names(engine) == ["data"]


def test_one_that_holds_something_stays_as_it_is(engine: Engine, tmp_path: Path) -> None:
    image = redis_like(tmp_path / "image.tar")
    Path(engine.create_volume("data").mountpoint, "mine").write_text("mine")
    assert run(engine, "sh", "-c", "echo /data/*", image=image, mounts=(volume("data", "/data"),)).out == "/data/mine\n"


@pytest.mark.parametrize(("options", "wanted"), [((), ["first", "link"]), (("nocopy",), [])])
def test_a_copy_that_was_cut_off_is_not_taken_for_the_whole(
    engine: Engine, tmp_path: Path, options: tuple[str, ...], wanted: list[str]
) -> None:
    image = redis_like(tmp_path / "image.tar")
    left = Path(engine.create_volume("data").mountpoint, COPYING)
    left.mkdir()
    (left / "half").touch()
    done = run(engine, "sh", "-c", "true", image=image, mounts=(volume("data", "/data", *options),))
    assert sorted(os.listdir(left.parent)) == wanted, done


def test_a_failed_create_leaves_no_volume(engine: Engine) -> None:
    with pytest.raises(Invalid):
        engine.create(RunRequest("host:/bin/sh", mounts=(volume("", "/d"), volume("data", "/proc/x"))))
    with pytest.raises(NotFound):
        engine.create(RunRequest("host:/bin/sh", mounts=(volume("", "/d"), Bind("bind", "/nowhere", "/e"))))
    assert names(engine) == []


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", "-x", "a" * 300, "a\nb"])
def test_names_that_are_none(engine: Engine, name: str) -> None:
    with pytest.raises(Invalid):
        engine.create_volume(name)


# a volume that is removed while a container with it is made


def removed_meanwhile(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> list[Any]:
    engine.create_volume("data")
    at_the_door = threading.Event()
    outcome: list[Any] = []

    def remove() -> None:
        try:
            outcome.append(engine.remove_volume("data"))
        except InUse as error:
            outcome.append(error)

    remover = threading.Thread(target=remove, daemon=True)
    find, hold = Volumes._find, KeyedLocks.hold

    def holding(locks: KeyedLocks, *arguments: Any) -> Any:
        if threading.current_thread() is remover:
            at_the_door.set()
        return hold(locks, *arguments)

    def finding(volumes: Volumes, name: str) -> Any:
        found = find(volumes, name)
        if threading.current_thread() is not remover:
            monkeypatch.setattr(Volumes, "_find", find)
            remover.start()
            if waits:
                assert at_the_door.wait(BOUND)
            else:
                remover.join(BOUND)
        return found

    monkeypatch.setattr(KeyedLocks, "hold", holding)
    monkeypatch.setattr(Volumes, "_find", finding)
    engine.create(RunRequest("host:/bin/sh", mounts=(volume("data", "/d"),)))
    remover.join(BOUND)
    return outcome


def test_a_volume_is_not_removed_while_a_container_takes_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (outcome,) = removed_meanwhile(engine, monkeypatch, waits=True)
    assert isinstance(outcome, InUse)


def test_twin_a_volume_that_nobody_holds(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def holding(_volumes: Volumes, _name: str) -> Iterator[None]:
        yield

    monkeypatch.setattr(Volumes, "_holding", holding)
    with pytest.raises(NotFound, match='volume "data"'):
        removed_meanwhile(engine, monkeypatch, waits=False)


# an engine that ends in the middle of a create


def left_by_a_create_cut_short(top: Path) -> list[str]:
    """The volumes that an engine finds whose predecessor was gone after it had made them, and before anybody was told."""
    with wherry.Engine(root=top / "root", run=top / "run") as made:
        creation = made._p.lifecycle._creation
        request = RunRequest("host:/bin/sh", mounts=(volume("", "/d"), volume("data", "/e")))
        creation.complete(creation.begin(request, "a" * 64, threading.RLock(), undo=Undo()), undo=Undo())
        assert len(made.volumes()) == 2
    with wherry.Engine(root=top / "root", run=top / "run") as made:
        assert made.containers(all=True) == ()
        return names(made)


def test_a_create_that_was_cut_short_leaves_no_volume_without_a_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert left_by_a_create_cut_short(tmp_path_factory.mktemp("cut")) == ["data"]


def test_twin_a_volume_that_is_not_noted_first(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Volumes, "_note", lambda _volumes, _record: None)
    assert len(left_by_a_create_cut_short(tmp_path_factory.mktemp("cut"))) == 2


# the driver alone


def driver(path: Path) -> LocalVolumes:
    context: Any = SimpleNamespace(root=path)
    return LocalVolumes(LocalConfig(), context)


def test_a_driver_takes_away_what_was_half_made(tmp_path: Path) -> None:
    for name in (".new-1", ".gone-2", "whole"):
        (tmp_path / name / "_data").mkdir(parents=True)
    made = driver(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["whole"]
    assert list(made.list()) == []


class Stopped(BaseException):
    """The engine is gone at this call."""


def killed_at_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create and a remove cut short at each call that changes something: what a next driver finds is whole or not there."""
    count = 1
    while True:
        directory = tmp_path / str(count)
        directory.mkdir()
        left = count

        def step(function: Any) -> Any:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    raise Stopped
                return function(*arguments, **options)

            return counted

        done = False
        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "fsync", "chmod"):
                patch.setattr(local.os, name, step(getattr(os, name)))
            patch.setattr(local, "remove", lambda *_args: False)
            try:
                made = driver(directory)
                made.create("data", {}, {"a": "b"})
                made.remove("data")
                done = True
            except Stopped:
                pass
        after = driver(directory)
        for name in os.listdir(directory):
            assert after.get(name).labels == {"a": "b"}
        if done:
            assert count > 6
            return
        count += 1


def test_a_volume_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at_each_call(tmp_path, monkeypatch)


def test_twin_a_volume_made_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(made: LocalVolumes, name: str, _options: Any, labels: Any) -> None:
        local.os.mkdir(f"{made._root}/{name}")
        local.os.mkdir(f"{made._root}/{name}/_data")
        Path(made._root, name, "volume.json").write_text(json.dumps({"created": 0, "labels": labels}))

    monkeypatch.setattr(LocalVolumes, "create", create)
    with pytest.raises((NotFound, AssertionError)):
        killed_at_each_call(tmp_path, monkeypatch)
