"""The verbs on images: pull, load, list, get, tag, remove, gc; names as users of docker write them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.images_area import image_layout, pack, world
from support.layers import digest, member, tar
from wherry.api import Denied, Error, Invalid, NotFound, Progress
from wherry.engine.images.references import familiar, normalize, split_transport
from wherry_plugins.store.local.ingest import LocalIngest

A, B = tar(member("a", data=b"a" * 1000)), tar(member("b", data=b"b" * 1000))


def archive(directory: Path, name: str, layers: list[bytes], *refs: str, **inner: Any) -> str:
    layout = directory / f"{name}.d"
    image_layout(layout, layers, **inner)
    index = json.loads((layout / "index.json").read_text())
    (entry,) = index["manifests"]
    index["manifests"] = [{**entry, "annotations": {"org.opencontainers.image.ref.name": ref}} for ref in refs] or [
        entry
    ]
    (layout / "index.json").write_text(json.dumps(index))
    return f"archive:{pack(layout, directory / f'{name}.tar')}"


# -- names -----------------------------------------------------------------------------------------------------------------

HEX = "a" * 64


@pytest.mark.parametrize(
    "text, full",
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("reg.example/a/b/c:t", "reg.example/a/b/c:t"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        (f"busybox:1@sha256:{HEX}", f"docker.io/library/busybox:1@sha256:{HEX}"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("a--b/c__d.e", "docker.io/a--b/c__d.e:latest"),
        ("Registry/app", "Registry/app:latest"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, full: str) -> None:
    assert normalize(text) == full
    assert normalize(full) == full


@pytest.mark.parametrize(
    "text",
    ["", "BusyBox", "a/B", "a b", "-a", "a:", "a:b:c", "a@sha256:short", f"a@sha512:{HEX}", "a//b", "/a", "a/", ".a", "a..b",
     "a:-x", "a:" + "t" * 129, "x" * 260, "a\n", "é", "../a", "http://a/b"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(Invalid):
        normalize(text)


def test_short_names_and_prefixes() -> None:
    assert familiar("docker.io/library/busybox:latest") == "busybox:latest"
    assert familiar("docker.io/user/app:1") == "user/app:1"
    assert familiar("quay.io/a/b:1") == "quay.io/a/b:1"
    assert split_transport("host:/bin/sh", ("host", "archive")) == ("host", "/bin/sh")
    assert split_transport("localhost:5000/x", ("host", "archive")) == ("", "localhost:5000/x")
    with pytest.raises(Invalid):
        split_transport("host:", ("host",))


# -- load, list, get, tag, remove ------------------------------------------------------------------------------------------


def test_load_list_get_tag_remove(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        images = made.images
        (loaded,) = images.load(archive(tmp_path, "x", [A, B], "one:1", "two:2", Labels={"k": "v", "wherry.x": "no"}))
        assert loaded.names == ("docker.io/library/one:1", "docker.io/library/two:2")
        assert (loaded.labels, loaded.platform, len(loaded.layers)) == ({"k": "v"}, "linux/amd64", 2)
        assert loaded.size > len(A) + len(B)
        assert images.list() == (loaded,)
        assert [info.names for info in images.list("one")] == [("docker.io/library/one:1",)]
        assert images.list("three") == ()
        short = loaded.id.partition(":")[2]
        for name in ("one:1", "docker.io/library/one:1", loaded.id, short, short[:12], loaded.target.digest):
            assert images.get(name).id == loaded.id
        with pytest.raises(NotFound):
            images.get("ffffffffffff" if not short.startswith("ffff") else "eeeeeeeeeeee")
        assert "docker.io/library/three:latest" in images.tag("one:1", "three").names
        with pytest.raises(Error, match="several names"):
            images.remove(short[:12])
        assert images.remove("one:1") == ("Untagged: one:1",)
        assert images.remove("two:2") == ("Untagged: two:2",)
        lines = images.remove("three")
        assert lines[:2] == ("Untagged: three:latest", f"Deleted: {loaded.id}")
        assert f"Deleted: {digest(A)}" in lines
        assert images.list() == ()
        assert list(made.drivers.store.walk()) == []
        with pytest.raises(NotFound):
            images.remove("three")


def test_what_is_shared_stays(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        images = made.images
        one = images.ensure(archive(tmp_path, "one", [A], "one:1"), made.drivers)
        two = images.ensure(archive(tmp_path, "two", [A, B], "two:1"), made.drivers)
        assert [info.parent for info in made.drivers.snapshotter.walk()] == ["", one.chain_id]
        lines = images.remove("two:1")
        assert f"Deleted: {digest(B)}" in lines
        assert f"Deleted: {digest(A)}" not in lines
        assert [info.name for info in made.drivers.snapshotter.walk()] == [one.chain_id]
        assert images.ensure("one:1", made.drivers).chain_id == one.chain_id
        assert two.chain_id != one.chain_id


def test_a_container_keeps_its_snapshot_and_its_config(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        images = made.images
        ready = images.ensure(archive(tmp_path, "x", [A, B], "x:1", Env=["A=b"]), made.drivers)
        made.drivers.snapshotter.prepare("c", ready.chain_id)
        live = {"snapshot/overlayfs/c", f"snapshot/overlayfs/{ready.chain_id}", f"blob/{ready.image.target.digest}"}
        images.live = lambda: live
        made.drivers.store.untag("docker.io/library/x:1")
        report = images.gc()
        assert report.snapshots == ()
        assert images.config(ready.image.target.digest, made.drivers)["config"]["Env"] == ["A=b"]
        made.drivers.snapshotter.remove("c")
        images.live = tuple
        report = images.gc()
        assert len(report.snapshots) == 2
        assert len(report.blobs) == 4
        assert report.bytes > 2000
        assert images.gc().blobs == ()


def test_gc_leaves_what_is_leased(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        made.images.load(archive(tmp_path, "x", [A], "x:1"))
        made.drivers.store.untag("docker.io/library/x:1")
        ingest = made.drivers.store.ingest("fetch-sha256:half")
        ingest.write(b"half")
        ingest.close()
        with made.leases.hold() as lease:
            lease.add(f"blob/{digest(A)}")
            lease.add("blob/sha256:half")
            made.images.gc()
            assert [info.digest for info in made.drivers.store.walk()] == [digest(A)]
            assert [ref for ref, _ in made.drivers.store.ingests()] == ["fetch-sha256:half"]
        made.images.gc()
        assert list(made.drivers.store.walk()) == []
        assert list(made.drivers.store.ingests()) == []


def test_gc_beside_ensure(tmp_path: Path) -> None:
    """No ensure fails and no container loses its layers, however often gc runs."""
    with world(tmp_path / "w") as made:
        source = archive(tmp_path, "x", [A, B], "x:1")
        stop = threading.Event()
        errors: list[BaseException] = []

        def collect() -> None:
            while not stop.is_set():
                try:
                    made.images.gc()
                except BaseException as error:
                    errors.append(error)

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            for number in range(12):
                with made.leases.hold():
                    ready = made.images.ensure(source, made.drivers)
                    made.drivers.snapshotter.prepare(f"c{number}", ready.chain_id)
                    made.drivers.snapshotter.remove(f"c{number}")
                made.images.remove("x:1")
        finally:
            stop.set()
            thread.join()
        assert errors == []


def test_an_ambiguous_beginning(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        seen: dict[str, str] = {}
        for number in range(60):
            (info,) = made.images.load(archive(tmp_path, f"x{number}", [], f"x{number}:1", Env=[f"N={number}"]))
            start = info.id.partition(":")[2][:1]
            if start in seen:
                break
            seen[start] = info.id
        with pytest.raises(NotFound):
            made.images.get(start)  # shorter than four digits it is a name


# -- pull ------------------------------------------------------------------------------------------------------------------


def test_pull_tells_what_it_does(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        source = archive(tmp_path, "x", [A, B], "x:1")
        steps = list(made.images.pull(source))
        assert steps[0].status == "resolving"
        assert steps[-1] == Progress("docker.io/library/x:1", "done")
        for blob in (A, B):
            states = [step.status for step in steps if step.id == digest(blob)]
            assert states[0] == "fetching"
            assert "unpacking" in states
            assert states[-1] == "done"
        again = [step.status for step in made.images.pull(source)]
        assert "fetching" not in again
        assert "unpacking" not in again
        assert "exists" in again


def test_a_pull_that_nobody_reads_ends_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(tmp_path / "w") as made:
        big = tar(member("big", data=os.urandom(30 << 20)))
        source = archive(tmp_path, "x", [big], "x:1")
        real = LocalIngest.write
        monkeypatch.setattr(LocalIngest, "write", lambda self, data: (time.sleep(0.05), real(self, data))[1])
        steps = made.images.pull(source)
        for step in steps:
            if step.id == digest(big) and step.current > 4 << 20:
                break
        steps.close()  # type: ignore[attr-defined]
        monkeypatch.undo()
        ((ref, offset),) = made.drivers.store.ingests()
        assert ref == f"fetch-{digest(big)}"
        assert offset > 4 << 20
        first = next(step for step in made.images.pull(source) if step.id == digest(big))
        assert first.current == offset, "it goes on where it was"
        list(made.images.pull(source))
        assert made.images.get("x:1")


def test_pull_needs_a_source(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        with pytest.raises(NotFound, match="no transport"):
            made.images.pull("busybox")
        with pytest.raises(NotFound):
            list(made.images.pull("archive:/nowhere.tar"))


def test_a_verifier_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(tmp_path / "w") as made:
        source = archive(tmp_path, "x", [A], "x:1")

        def refuse(name: str, target: Any) -> None:
            raise Denied(f'image "{name}"', "no signature")

        with monkeypatch.context() as patch:
            patch.setattr(made.kernel, "verify", refuse)
            with pytest.raises(Denied, match="no signature"):
                made.images.ensure(source, made.drivers)
            assert list(made.drivers.store.walk()) == []
        made.images.ensure(source, made.drivers)
        monkeypatch.setattr(made.kernel, "verify", refuse)
        with pytest.raises(Denied):
            made.images.ensure("x:1", made.drivers)


# -- platforms -------------------------------------------------------------------------------------------------------------


def test_an_index_gives_the_platform_asked_for(tmp_path: Path) -> None:
    layout = tmp_path / "multi"
    entries = []
    for platform, layer in (("arm64", A), ("amd64", B)):
        target = image_layout(layout, [layer])
        blob = layout / "blobs/sha256" / target.digest.partition(":")[2]
        manifest = json.loads(blob.read_text())
        config = layout / "blobs/sha256" / manifest["config"]["digest"].partition(":")[2]
        changed = config.read_text().replace('"amd64"', f'"{platform}"').encode()
        (layout / "blobs/sha256" / digest(changed).partition(":")[2]).write_bytes(changed)
        manifest["config"].update(digest=digest(changed), size=len(changed))
        text = json.dumps(manifest).encode()
        (layout / "blobs/sha256" / digest(text).partition(":")[2]).write_bytes(text)
        entries.append({"mediaType": target.media_type, "digest": digest(text), "size": len(text),
                        "platform": {"os": "linux", "architecture": platform}})  # fmt: skip
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    ).encode()
    (layout / "blobs/sha256" / digest(index).partition(":")[2]).write_bytes(index)
    top = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(index), "size": len(index),
           "annotations": {"org.opencontainers.image.ref.name": "multi:1"}}  # fmt: skip
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    source = f"archive:{pack(layout, tmp_path / 'multi.tar')}"
    with world(tmp_path / "w") as made:
        here = made.images.ensure(source, made.drivers, "linux/amd64")
        assert here.chain_id == digest(B)
        assert digest(A) not in [info.digest for info in made.drivers.store.walk()], "only what is needed is fetched"
        there = made.images.ensure(source, made.drivers, "linux/arm64/v8")
        assert there.chain_id == digest(A)
        assert there.image.target == here.image.target
        with pytest.raises(NotFound, match="linux/amd64, linux/arm64"):
            made.images.ensure(source, made.drivers, "linux/s390x")
        made.images.gc()
        assert {digest(A), digest(B)} <= {info.digest for info in made.drivers.store.walk()}


def test_an_image_of_one_platform_is_for_no_other(tmp_path: Path) -> None:
    source = archive(tmp_path, "one.tar", [A], "one:1")
    with world(tmp_path / "w") as made:
        for _ in range(2):  # not here, and here
            with pytest.raises(NotFound, match=r"one.*nothing for the platform linux/s390x; it has: linux/amd64"):
                made.images.ensure(source, made.drivers, "linux/s390x")
            assert made.images.ensure(source, made.drivers, "amd64") == made.images.ensure(source, made.drivers)
        with pytest.raises(NotFound, match='image "one:1": has nothing for the platform linux/s390x'):
            made.images.layers("one:1", "linux/s390x")


def test_the_store_is_readable_for_skopeo(tmp_path: Path) -> None:
    with world(tmp_path / "w") as made:
        made.images.load(archive(tmp_path, "x", [A, B], "x:1"))
        path = made.root / "store/local"
        out = tmp_path / "out"
        subprocess.run(
            ["skopeo", "--insecure-policy", "--tmpdir", str(tmp_path), "copy", "-q", f"oci:{path}:docker.io/library/x:1",
             f"dir:{out}"], check=True,
        )  # fmt: skip
        assert (out / digest(A).partition(":")[2]).read_bytes() == A
