"""Verbs on images that meet gc or each other at the worst moment, which each test brings about. The twins lack one step."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.images_area import World, image_layout, pack, world
from support.layers import Inside, digest, member, tar
from wherry.api import FailedPrecondition, Invalid, NotFound
from wherry.engine.images.gc import GarbageCollector
from wherry.engine.images.images import Images
from wherry.engine.images.lookup import ImageLookup
from wherry.engine.state.leases import Leases
from wherry_plugins.store.local.store import LocalStore
from wherry_plugins.transport.archive.file import ArchiveFile

A, B = tar(member("a", data=b"a" * 1000)), tar(member("b", data=b"b" * 1000))
NAME, OTHER = "docker.io/library/x:1", "docker.io/library/y:1"


def archive(directory: Path, *refs: str) -> str:
    layout = directory / "layout"
    image_layout(layout, [A, B])
    index = json.loads((layout / "index.json").read_text())
    (entry,) = index["manifests"]
    index["manifests"] = [{**entry, "annotations": {"org.opencontainers.image.ref.name": ref}} for ref in refs]
    (layout / "index.json").write_text(json.dumps(index))
    return f"archive:{pack(layout, directory / 'x.tar')}"


def broken(made: World) -> list[str]:
    """Names that lead to something that is not there."""
    store = made.drivers.store
    there = {info.digest for info in store.walk()}
    made.images._documents._parsed.clear()
    return [
        image.name
        for image in store.list()
        if not {item.digest for item in made.images._documents.references(store, image.target)} <= there
        or len(list(made.images._documents.references(store, image.target))) != 4
    ]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path / "w") as made:
        made.images.ensure(archive(tmp_path, "x:1"), made.drivers)
        yield made


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], None], *, after: bool) -> None:
    """At the first call of a method, before or after it, something else happens, on a thread of its own and to its end."""
    real = getattr(owner, name)
    left = [act]

    def meet() -> None:
        if left:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(left.pop()).result(timeout=30)

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        if not after:
            meet()
        answer = real(self, *arguments, **options)
        if after:
            meet()
        return answer

    monkeypatch.setattr(owner, name, method)


def no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Images, "_lease", lambda self, lease, store, image: None)


def gone(made: World) -> None:
    made.images.remove("x:1")
    made.images.gc()


@pytest.mark.parametrize("twin", [False, True])
def test_tag_when_the_image_goes(made: World, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """Found by tag, then removed and collected: no name may be left that leads nowhere."""
    if twin:
        no_look(monkeypatch)
    once(monkeypatch, ImageLookup, "find", lambda: gone(made), after=True)
    if twin:
        with pytest.raises(NotFound):
            made.images.tag("x:1", "y:1")
        assert broken(made) == [OTHER]
        return
    with pytest.raises(NotFound, match="removed just now"):
        made.images.tag("x:1", "y:1")
    assert broken(made) == []
    assert list(made.drivers.store.list()) == []


@pytest.mark.parametrize("twin", [False, True])
def test_tag_between_the_looks_of_gc(made: World, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """gc has seen that nobody needs the image; then it gets a name again by a client that found it before."""
    if twin:
        monkeypatch.setattr(Leases, "tell", lambda self, resource: None)  # no second look
    image = made.drivers.store.resolve(NAME)

    def tag() -> None:
        with made.leases.hold() as lease:
            made.images._lease(lease, made.drivers.store, image)
            made.images._tag(made.drivers.store, OTHER, image.target)

    made.drivers.store.untag(NAME)
    once(monkeypatch, GarbageCollector, "_delete", tag, after=False)
    made.images.gc()
    assert broken(made) == ([OTHER] if twin else [])
    if not twin:
        assert made.images.get("y:1").names == (OTHER,)


@pytest.mark.parametrize("twin", [False, True])
def test_a_driver_holds_what_was_just_marked(made: World, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """Drivers lease without the gate (Context.hold): the third look takes the mark away, and those of all that it leads to."""
    image = made.drivers.store.resolve(NAME)
    made.drivers.store.untag(NAME)
    if twin:
        monkeypatch.setattr(LocalStore, "unmark", lambda self, digests: None)
        monkeypatch.setattr(GarbageCollector, "_closure", limited(GarbageCollector._closure))
    with made.leases.hold() as lease:
        once(monkeypatch, LocalStore, "mark", lambda: lease.add(f"blob/{image.target.digest}"), after=True)
        made.images.gc()
        assert len(list(made.drivers.store.walk())) == (0 if twin else 4)


def limited(real: Any) -> Any:
    """The twin does not loop for ever over what it does not unmark: its later looks find nothing."""
    calls: list[int] = []

    def closure(self: Any, store: Any, resources: Any) -> set[str]:
        calls.append(1)
        return real(self, store, resources) if len(calls) < 4 else set()

    return closure


@pytest.mark.parametrize("twin", [False, True])
def test_run_when_the_image_goes(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """A container found its image by name; it went. The container gets it again or fails, but never lacks its blobs."""
    if twin:
        no_look(monkeypatch)
    once(monkeypatch, ImageLookup, "local", lambda: gone(made), after=True)
    with made.leases.hold():
        if twin:
            with pytest.raises(NotFound):
                made.images.ensure(f"archive:{tmp_path}/absent.tar", made.drivers)
            return
        with pytest.raises(NotFound):
            made.images.ensure("x:1", made.drivers)
    assert list(made.drivers.snapshotter.walk()) == []


@pytest.mark.parametrize("twin", [False, True])
def test_a_layer_is_kept_for_a_name_that_came_late(made: World, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """Which chains are wanted is asked anew when a name was given since."""
    if twin:
        monkeypatch.setattr(GarbageCollector, "named", lambda self, store, target: None)
    image = made.drivers.store.resolve(NAME)
    made.drivers.store.untag(NAME)

    def tag() -> None:
        made.images._tag(made.drivers.store, OTHER, image.target)

    monkeypatch.setattr(
        GarbageCollector, "_delete", lambda self, store, doomed, moment: ()
    )  # its blobs are another test's matter
    once(monkeypatch, type(made.kernel.driver("snapshotter", "overlayfs")), "walk", tag, after=True)
    made.images.gc()
    assert len(list(made.drivers.snapshotter.walk())) == (0 if twin else 2)


def test_loads_of_one_image_at_once(tmp_path: Path) -> None:
    source = archive(tmp_path, "x:1", "y:1")
    with world(tmp_path / "w") as made:
        gate = threading.Barrier(6)

        def load(number: int) -> tuple[str, ...]:
            gate.wait(30)
            if number % 2:
                return made.images.load(source)[0].names
            return made.images.ensure(source, made.drivers).image.names

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(load, range(6)))
        assert all(NAME in names for names in found)
        assert broken(made) == []
        assert len(list(made.drivers.snapshotter.walk())) == 2
        assert list(made.drivers.store.ingests()) == []


def test_imports_of_one_tree_at_once(tmp_path: Path) -> None:
    (tmp_path / "r.tar").write_bytes(A)
    with world(tmp_path / "w") as made:
        gate = threading.Barrier(4)

        def take(number: int) -> str:
            gate.wait(30)
            return made.images.import_image(f"archive:rootfs:{tmp_path}/r.tar", f"i{number // 2}:1", (), "same").id

        with ThreadPoolExecutor(4) as pool:
            ids = set(pool.map(take, range(4)))
        assert {image.id for image in made.images.list()} <= ids
        assert {name for image in made.images.list() for name in image.names} == {
            "docker.io/library/i0:1",
            "docker.io/library/i1:1",
        }
        assert list(made.drivers.store.ingests()) == []


def test_programs_of_the_host_at_once(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        gate = threading.Barrier(4)

        def take(_number: int) -> str:
            gate.wait(30)
            return made.images.ensure("host:/bin/true", made.drivers).chain_id

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(take, range(4)))) == 1


def test_clients_of_all_kinds_at_once(tmp_path: Path) -> None:
    """pull, tag, rmi, gc and list beside each other: what fails says that the image is not there; nothing is broken after it."""
    source = archive(tmp_path, "x:1")
    with world(tmp_path / "w") as made:

        def client(number: int) -> None:
            for turn in range(6):
                try:
                    match (number + turn) % 6:
                        case 0 | 1:
                            made.images.ensure(source, made.drivers)
                        case 2:
                            made.images.tag("x:1", f"t{number}:1")
                        case 3:
                            made.images.remove("x:1", force=True)
                        case 4:
                            made.images.gc()
                        case 5:
                            made.images.list()
                except (NotFound, FailedPrecondition):
                    continue

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(client, range(6)))
        assert broken(made) == []
        for image in list(made.drivers.store.list()):
            made.drivers.store.untag(image.name)
        made.images.gc()
        assert list(made.drivers.store.walk()) == []
        assert list(made.drivers.snapshotter.walk()) == []
        assert os.listdir(made.root / "store/local/blobs/sha256") == []


@pytest.mark.parametrize("twin", [False, True])
def test_a_power_cut_leaves_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """The length of a partial file may be on disk before its bytes are: the pull after it begins that blob anew."""
    source = archive(tmp_path, "x:1")
    with world(tmp_path / "w") as made:
        ingest = made.drivers.store.ingest(f"fetch-{digest(A)}")
        ingest.write(bytes(700))
        ingest.close()
        if twin:
            from wherry.engine.images.fetch import Fetcher

            monkeypatch.setattr(Fetcher, "_ingest", without_second_try(Fetcher))
            with pytest.raises(Invalid):
                list(made.images.pull(source))
            return
        assert list(made.images.pull(source))[-1].status == "done"
        assert list(made.drivers.store.ingests()) == []


def without_second_try(fetcher: Any) -> Any:
    def ingest(self: Any, target: Any, arrival: Any) -> None:
        writer = self._store.ingest(f"fetch-{target.digest}", target)
        try:
            self._write(writer, target, arrival)
        finally:
            writer.close()

    return ingest


@pytest.mark.parametrize("twin", [False, True])
def test_no_descriptor_of_another_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """A packed archive that is unpacked when no descriptor is to be had: the number it gave back may be another thread's by then."""
    import gzip

    from wherry_plugins.transport.archive import file as module

    plain = tmp_path / "x.tar"
    plain.write_bytes(tar(member("a", data=b"x")))
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    others: list[int] = []

    def full(fd: int, *arguments: Any, **options: Any) -> int:
        raise OSError(24, "too many open files")

    if twin:

        def careless(fd: int, fd2: int, inheritable: bool = True) -> int:
            os.close(fd2)
            others.append(os.open("/dev/null", os.O_RDONLY))  # another thread gets the number
            raise OSError(24, "too many open files")

        monkeypatch.setattr(module.os, "dup2", careless)
    else:
        monkeypatch.setattr(module.os, "dup2", full)
    with pytest.raises(OSError, match="too many"):
        ArchiveFile(packed, tmp_path, 1 << 20)
    monkeypatch.undo()
    if twin:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(others[0])


def test_store_and_snapshotter_in_processes_of_their_own(tmp_path: Path) -> None:
    """Each verb with drivers that are reached over a socket."""
    own = "\n[plugin.store.local]\nprocess = true\n[plugin.snapshotter.overlayfs]\nprocess = true\n"
    source = archive(tmp_path, "x:1")
    with world(tmp_path / "w", more=own) as made:
        made.images.ensure(source, made.drivers)
        made.images.tag("x:1", "y:1")
        assert len(b"".join(made.images.save(["x:1"], "docker-archive"))) > 20_000
        layer = made.images.layers("x:1")[0]
        assert layer.unpacked > 0
        assert [file.path for file in made.images.layer_files("x:1", layer.digest)] == ["a"]
        assert made.images.disk_usage((), images_only=True).layers > 20_000
        made.images.remove("x:1")
        made.drivers.store.untag(OTHER)
        report = made.images.gc()
        assert (len(report.blobs), len(report.snapshots)) == (4, 2)
        assert list(made.drivers.store.walk()) == []


@pytest.mark.parametrize("twin", [False, True])
def test_a_long_archive_keeps_nobody_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    from wherry_plugins.transport.archive import transport as module

    for name in ("long", "short"):
        (tmp_path / f"{name}.tar").write_bytes(A)
    begun, go = threading.Event(), threading.Event()
    real = ArchiveFile.__init__

    def slow(self: Any, path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "long.tar":
            begun.set()
            assert go.wait(30)
        real(self, path, *arguments, **options)

    monkeypatch.setattr(ArchiveFile, "__init__", slow)
    if twin:
        one = threading.Lock()
        monkeypatch.setattr(module._Slot, "lock", property(lambda self: one, lambda self, value: None), raising=False)
    archives = module.ArchiveTransport(tmp_path, 1 << 30, Inside(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(archives.resolve, f"rootfs:{tmp_path}/long.tar", "linux/amd64")
        assert begun.wait(30)
        short = pool.submit(archives.resolve, f"rootfs:{tmp_path}/short.tar", "linux/amd64")
        try:
            if twin:
                with pytest.raises(TimeoutError):
                    short.result(timeout=0.5)
            else:
                assert short.result(timeout=30)
        finally:
            go.set()
        assert long.result(timeout=30)
        assert short.result(timeout=30)
    archives.close()


def test_an_archive_that_is_dropped_before_its_turn_is_closed(tmp_path: Path) -> None:
    from wherry_plugins.transport.archive.transport import ArchiveTransport

    (tmp_path / "x.tar").write_bytes(A)
    reference = f"rootfs:{tmp_path}/x.tar"
    archives = ArchiveTransport(tmp_path, 1 << 30, Inside(tmp_path))
    with archives._using(reference) as slot:
        archives._slots.clear()  # what another thread does between the look-up and the lock
        archives._open(slot, "linux/amd64")
        assert slot._archive is not None
    assert slot._archive is None
    for number in range(9):
        (tmp_path / f"{number}.tar").write_bytes(A)
        archives.resolve(f"rootfs:{tmp_path}/{number}.tar", "linux/amd64")
    assert len(archives._slots) == 4
    archives.close()
    assert archives._slots == {}
