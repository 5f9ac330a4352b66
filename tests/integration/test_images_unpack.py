"""Real images through store, workers and snapshotters: the trees are those of umoci, under overlayfs and under vfs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.images_area import image_layout, mounted, pack, world
from support.layers import digest, directory, hard, link, member, names, tar, tree
from support.tools import need
from wherry.api import Error, Invalid, NotFound
from wherry.engine.images import unpack, writeback
from wherry.kit.database import Database
from wherry.kit.snapshots.rows import Snapshots

BOTH = pytest.mark.parametrize("snapshotter", ["overlayfs", "vfs"])

LAYERS = [
    tar(
        directory("./", mtime=100),
        directory("etc", mtime=101, mode=0o750, gid=5),
        member("etc/passwd", data=b"root:x:0:0::/root:/bin/sh\n"),
        member("etc/caps", data=b"x", pax_headers={"SCHILY.xattr.user.note": "kept"}),
        directory("d"),
        member("d/1", data=b"1" * 5000),
        hard("d/2", "d/1"),
        directory("d/sub"),
        member("d/sub/deep", data=b"deep"),
        link("l", "d/sub"),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("fifo", tarfile.FIFOTYPE),
        directory("opaque"),
        member("opaque/old", data=b"old"),
        member("flip", data=b"a file"),
        directory("flop"),
        member("flop/x", data=b"x"),
    ),
    tar(
        member("d/.wh.1"),
        member("d/new", data=b"new", mode=0o4755, uid=1000, gid=1000),
        member("opaque/.wh..wh..opq"),
        member("opaque/new", data=b"new"),
        member(".wh.null"),
        directory("flip", mtime=7),
        member("flip/inside", data=b"i"),
        link("flop", "flip"),
        member("etc/passwd", data=b"root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n"),
    ),
    tar(member("l/through", data=b"t"), hard("hard", "etc/passwd"), directory("d", mode=0o700, mtime=55), member("d/.wh.sub")),
]  # fmt: skip


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    """An archive of an image with whiteouts, opaque directories, kinds that change and links of every sort."""
    layout = tmp_path / "layout"
    image_layout(layout, LAYERS, Env=["A=b"])
    return pack(layout, tmp_path / "layered.tar")


def _by_umoci(layout: Path, target: Path, tag: str = "x") -> Path:
    need("umoci")
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": tag}
    copy = target / "layout"
    shutil.copytree(layout, copy)
    (copy / "index.json").write_text(json.dumps(index))
    subprocess.run(
        ["umoci", "unpack", "--image", f"{copy}:{tag}", str(target / "bundle")], check=True, capture_output=True
    )
    return target / "bundle" / "rootfs"


def _comparable(root: Path) -> dict[str, Any]:
    """umoci keeps the times of a directory that a layer only writes into, but not where it does so through a link."""
    found = tree(root, times=True)
    found["d/sub"] = found["d/sub"][:-1]
    return found


@BOTH
def test_a_made_image_unpacks_as_umoci_does(tmp_path: Path, layered: Path, snapshotter: str) -> None:
    theirs = _by_umoci(tmp_path / "layout", tmp_path / "umoci")
    with world(tmp_path / "w", snapshotter) as made:
        ready = made.images.ensure(f"archive:{layered}", made.drivers)
        mounts = made.drivers.snapshotter.prepare("c", ready.chain_id)
        with mounted(mounts, tmp_path / "mnt") as ours:
            assert _comparable(ours) == _comparable(theirs)
        view = made.drivers.snapshotter.view("v", ready.chain_id)
        with mounted(view, tmp_path / "view") as ours:
            assert _comparable(ours) == _comparable(theirs)
            with pytest.raises(OSError):
                (ours / "new").write_bytes(b"")


@BOTH
@pytest.mark.parametrize("kind", ["busybox", "debian"])
def test_real_images_unpack_as_umoci_does(
    tmp_path: Path, snapshotter: str, kind: str, request: pytest.FixtureRequest
) -> None:
    image: Path = request.getfixturevalue(f"{kind}_image")
    theirs = _by_umoci(image / "oci", tmp_path / "umoci")
    with world(tmp_path / "w", snapshotter) as made:
        chains = set()
        for name in ("docker-archive.tar", "oci-archive.tar"):
            ready = made.images.ensure(f"archive:{image / name}", made.drivers)
            chains.add(ready.chain_id)
        assert len(chains) == 1, "a docker archive and an OCI archive of one image have the same layers"
        mounts = made.drivers.snapshotter.prepare("c", ready.chain_id)
        with mounted(mounts, tmp_path / "mnt") as ours:
            assert tree(ours, times=True) == tree(theirs, times=True)


@BOTH
def test_what_a_container_writes_stays_its_own(tmp_path: Path, layered: Path, snapshotter: str) -> None:
    with world(tmp_path / "w", snapshotter) as made:
        ready = made.images.ensure(f"archive:{layered}", made.drivers)
        take = made.drivers.snapshotter.prepare
        with (
            mounted(take("a", ready.chain_id), tmp_path / "a") as a,
            mounted(take("b", ready.chain_id), tmp_path / "b") as b,
        ):
            before = tree(b, times=True)
            (a / "etc/passwd").write_bytes(b"changed")
            (a / "d/new").unlink()
            shutil.rmtree(a / "opaque")
            assert tree(b, times=True) == before
        for key in ("a", "b"):
            made.drivers.snapshotter.remove(key)


def test_many_layers_mount(tmp_path: Path) -> None:
    """More lower directories than mount(2)'s page of options holds."""
    layout = tmp_path / "layout"
    image_layout(layout, [tar(member(f"f{number}", data=b"x")) for number in range(40)])
    with world(tmp_path / ("long-directory-name-" * 5) / ("and-another-" * 8)) as made:
        ready = made.images.ensure(f"archive:{pack(layout, tmp_path / 'x.tar')}", made.drivers)
        (mount,) = made.drivers.snapshotter.prepare("c", ready.chain_id)
        assert len(",".join(mount.options)) > 4096
        with mounted((mount,), tmp_path / "mnt") as ours:
            assert len(names(ours)) == 40


# -- what does not match ---------------------------------------------------------------------------------------------------


def test_a_wrong_diff_id_leaves_nothing(tmp_path: Path) -> None:
    image_layout(
        tmp_path / "l", [tar(member("a")), tar(member("b"))], diff_ids=[digest(tar(member("a"))), digest(b"other")]
    )
    archive = pack(tmp_path / "l", tmp_path / "x.tar")
    with world(tmp_path / "w") as made:
        with pytest.raises(Invalid, match="diff-id"):
            made.images.ensure(f"archive:{archive}", made.drivers)
        found = [info.name for info in made.drivers.snapshotter.walk()]
        assert found == [digest(tar(member("a")))], "the first layer is right and may stay, nothing is active"
        assert list(made.drivers.store.list()) == [], "what can't be unpacked gets no name"
        made.images.gc()
        assert list(made.drivers.snapshotter.walk()) == []
        assert list(made.drivers.store.walk()) == []


def test_a_blob_unlike_its_digest_never_shows(tmp_path: Path) -> None:
    target = image_layout(tmp_path / "l", [tar(member("a"))])
    blob = tmp_path / "l/blobs/sha256" / digest(tar(member("a"))).partition(":")[2]
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    archive = pack(tmp_path / "l", tmp_path / "x.tar")
    with world(tmp_path / "w") as made:
        with pytest.raises(Invalid):
            made.images.ensure(f"archive:{archive}", made.drivers)
        assert digest(tar(member("a"))) not in [info.digest for info in made.drivers.store.walk()]
        assert list(made.drivers.store.ingests()) == []
        assert list(made.drivers.store.list()) == []
        assert target


@BOTH
def test_hostile_layers_through_a_worker(tmp_path: Path, snapshotter: str) -> None:
    """The worker's root is the snapshot: even a link that resolution followed could not lead out. The link and what is written
    through it also in layers of their own, which are unpacked side by side (CVE-2025-47290's kind). The twins are in test_layers_apply.
    """
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_bytes(b"canary")
    attacks = [
        [link("l", str(canary)), member("l/file", data=b"evil")],
        [member(f"../../../../../../..{canary}/file", data=b"evil")],
        [link("l", str(canary)), member("l/.wh.file")],
        [link("l", "/proc/1/root"), member(f"l{canary}/file", data=b"evil")],
    ]
    images = [[tar(*attack)] for attack in attacks]
    images += [[tar(one) for one in order] for attack in attacks for order in (attack, attack[::-1])]
    with world(tmp_path / "w", snapshotter) as made:
        for number, layers in enumerate(images):
            image_layout(tmp_path / f"l{number}", layers)
            archive = pack(tmp_path / f"l{number}", tmp_path / f"{number}.tar")
            try:
                made.images.ensure(f"archive:{archive}", made.drivers)
            except (Error, OSError):
                pass
            assert names(canary) == {"file"}
            assert (canary / "file").read_bytes() == b"canary"


# -- several at once -------------------------------------------------------------------------------------------------------


@BOTH
def test_callers_at_once_do_the_work_once(tmp_path: Path, layered: Path, snapshotter: str, monkeypatch: Any) -> None:
    with world(tmp_path / "w", snapshotter) as made:
        unpacked: list[tuple[str, str]] = []
        for way in ("unpack", "unpack_apart"):  # a layer that needs its parents is tried without them first
            real = getattr(made.workers, way)
            monkeypatch.setattr(
                made.workers,
                way,
                lambda *args, way=way, real=real, **more: (
                    unpacked.append((way, args[1].digest)),
                    real(*args, **more),
                )[1],
            )
        results: list[Any] = []

        def ensure() -> None:
            try:
                results.append(made.images.ensure(f"archive:{layered}", made.drivers).chain_id)
            except BaseException as error:
                results.append(error)

        threads = [threading.Thread(target=ensure) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 8
        assert len(set(results)) == 1, results
        assert len(set(unpacked)) == len(unpacked)
        assert {layer for _way, layer in unpacked} == {digest(layer) for layer in LAYERS}
        assert {info.kind for info in made.drivers.snapshotter.walk()} == {"committed"}


def test_an_unpack_that_was_cut_short_is_only_rubbish(tmp_path: Path, layered: Path) -> None:
    with world(tmp_path / "w") as made:
        chain = made.images.ensure(f"archive:{layered}", made.drivers).chain_id
        made.drivers.snapshotter.prepare("unpack-0123-sha256:x", chain)
        made.drivers.snapshotter.prepare("container", chain)
        report = made.images.gc()
        assert report.snapshots == ("overlayfs/unpack-0123-sha256:x",)
        assert "container" in [info.name for info in made.drivers.snapshotter.walk()]


def test_what_a_power_cut_may_have_damaged_is_made_anew(tmp_path: Path, layered: Path, monkeypatch: Any) -> None:
    """Layers are committed before they are synced; one of an earlier boot that was not is no layer."""
    with world(tmp_path / "w") as made:
        with monkeypatch.context() as patch:
            patch.setattr(writeback, "syncfs", lambda fd: (_ for _ in ()).throw(OSError(5, "power cut")))
            with pytest.raises(OSError, match="power cut"):
                made.images.ensure(f"archive:{layered}", made.drivers)
        chain = [info.name for info in made.drivers.snapshotter.walk()]
        assert len(chain) == len(LAYERS)
        for name in chain:
            assert made.drivers.snapshotter.update(name, {unpack.UNSYNCED: "an earlier boot"})
        (damaged,) = made.root.glob("snapshotter/overlayfs/snapshots/*/fs/etc/caps")
        damaged.write_bytes(b"")
    with world(tmp_path / "w") as made:
        ready = made.images.ensure(f"archive:{layered}", made.drivers)
        assert ready.chain_id in chain
        infos = list(made.drivers.snapshotter.walk())
        assert [unpack.UNSYNCED in info.labels for info in infos] == [False] * len(LAYERS)
        with mounted(made.drivers.snapshotter.prepare("c", ready.chain_id), tmp_path / "mnt") as ours:
            assert (ours / "etc/caps").read_bytes() == b"x"
        made.drivers.snapshotter.cleanup()
        assert not damaged.exists()


@pytest.mark.parametrize("twin", ["", "commit", "relabel"])
@BOTH
def test_layers_wait_for_the_disk_once(
    tmp_path: Path, layered: Path, monkeypatch: pytest.MonkeyPatch, snapshotter: str, twin: str
) -> None:
    """One sync of the files and one of the rows, however many layers there are."""
    waited: list[str] = []
    real_write, real_commit = Database.write, Snapshots.commit

    @contextmanager
    def write(self: Database, *, durable: bool = True) -> Iterator[Any]:
        with self._lock:
            outer, before = not self._depth, self._connection.total_changes()
            with real_write(self, durable=durable) as execute:
                yield execute
            if durable and outer and self._connection.total_changes() > before:  # else there is nothing to wait for
                waited.append(self.path.name)

    def commit(self: Snapshots, name: str, key: str, labels: Any) -> None:
        with self.database.write():
            real_commit(self, name, key, labels)

    def relabel(self: Snapshots, names: Any, labels: Any) -> None:
        for name in names:
            self.update(name, labels)

    if twin:
        monkeypatch.setattr(Snapshots, twin, {"commit": commit, "relabel": relabel}[twin])
    with world(tmp_path / "w", snapshotter) as made:
        monkeypatch.setattr(Database, "write", write)
        made.images.ensure(f"archive:{layered}", made.drivers)
        monkeypatch.setattr(Database, "write", real_write)
        assert {info.kind for info in made.drivers.snapshotter.walk()} == {"committed"}
    assert waited.count("snapshots.db") == {"": 1, "commit": 1 + len(LAYERS), "relabel": len(LAYERS)}[twin]


def test_a_commit_that_nobody_waited_for_leaves_no_half(tmp_path: Path) -> None:
    """Taken back to the active snapshot that it was, it goes at the next boot; what was made to last stays."""
    rows = Snapshots(tmp_path / "snapshots.db")
    for key, durable in (("fleeting", False), ("lasting", True)):
        with rows.prepare(key, "", {}, "active", durable=durable):
            pass
    rows._boot = "another boot"
    rows._recover()
    assert [row.name for row in rows.walk()] == ["lasting"]
    with rows.prepare("fleeting", "", {}, "active", durable=False):
        pass
    rows.commit("layer", "fleeting", {})
    rows._boot = "a third"
    rows._recover()
    assert [row.name for row in rows.walk()] == ["lasting", "layer"]
    rows.close()


def test_never_and_unknown(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        with pytest.raises(NotFound, match="no transport"):
            made.images.ensure("busybox", made.drivers)
        with pytest.raises(NotFound, match="never"):
            made.images.ensure("busybox", made.drivers, "", "never")
        with pytest.raises(Invalid, match="lower case"):
            made.images.ensure("BusyBox", made.drivers)
        with pytest.raises(NotFound):
            made.images.ensure("archive:/nowhere.tar", made.drivers)
        with pytest.raises(NotFound):
            made.images.get("busybox")


def test_the_same_image_in_several_snapshotters(tmp_path: Path, layered: Path) -> None:
    """Fetched once, unpacked in each, the same tree in each; and each gives its part back."""
    more = '[variant.copies]\nextends = "standard"\nsnapshotter = "vfs"\n'
    with world(tmp_path / "w", "overlayfs", more) as made:
        both = {"overlayfs": made.drivers, "vfs": made.kernel.variant("copies")}
        seen = {}
        for id, drivers in both.items():
            ready = made.images.ensure(f"archive:{layered}", drivers)
            with mounted(drivers.snapshotter.view("look", ready.chain_id), tmp_path / id) as root:
                seen[id] = tree(root, times=True)
            assert sum(drivers.snapshotter.usage(info.name)[0] for info in drivers.snapshotter.walk()) > 0
            drivers.snapshotter.remove("look")
        assert seen["overlayfs"] == seen["vfs"]
        assert len(list(made.drivers.store.walk())) == len(LAYERS) + 2, "layers, a config and a manifest"
        for image in list(made.drivers.store.list()):
            made.images.remove(image.name)
        made.images.gc()
        for id, drivers in both.items():
            assert list(drivers.snapshotter.walk()) == []
            assert os.listdir(made.root / "snapshotter" / id / "snapshots") == []
