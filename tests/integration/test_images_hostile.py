"""Documents and digests that lie, and registries without end, through the engine's verbs: refused within 64 MiB and 30 s, with
nothing of them left behind. Each with a twin that lacks the step which refuses it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cost import MEMORY, bounded, measured
from support.hostile import A, Liar, Maker, nothing_is_left, refused
from support.images_area import World, world
from support.layers import digest, member, tar
from support.registry import Content, Handler, Scripted, image
from wherry.api import Descriptor, Digest, Error, Invalid
from wherry.engine.images import content as content_module
from wherry.engine.images import fetch
from wherry.spec import distribution, document
from wherry.spec import image as image_module
from wherry.spec.distribution import CONFIG, INDEX, LAYER, MANIFEST
from wherry_plugins.store.local import ingest as ingest_module
from wherry_plugins.store.local import store as store_module
from wherry_plugins.store.local.ingest import LocalIngest
from wherry_plugins.store.local.store import LocalStore
from wherry_plugins.transport.archive import file, formats
from wherry_plugins.transport.registry.stream import BlobStream


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path / "w") as made:
        yield made


# -- documents -------------------------------------------------------------------------------------------------------------

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
HUGE_NUMBER = b'{"schemaVersion":' + b"9" * 1_000_000 + b"}"
NASTY: dict[str, bytes] = {
    "deep": DEEP,
    "deep list": b"[" * 1_000_000,
    "number": HUGE_NUMBER,
    "twice": b'{"schemaVersion":2,"schemaVersion":2}',
    "nan": b'{"schemaVersion":NaN}',
    "surrogate": b'{"schemaVersion":2,"mediaType":"\\ud800"}',
    "bytes": b'{"schemaVersion":2,"mediaType":"\xff"}',
    "empty": b"",
    "big": b'{"a":"' + b"x" * (5 << 20) + b'"}',
}


@pytest.mark.parametrize("place", ["index", "manifest", "config", "docker", "docker config"])
def test_documents_that_no_reader_should_read(made: World, tmp_path: Path, place: str) -> None:
    for nasty, data in NASTY.items():
        refused(made, spoilt(place, data).write(tmp_path / f"{nasty}.tar"))


def spoilt(place: str, data: bytes) -> Maker:
    """An archive in which one document is data."""
    maker = Maker()
    match place:
        case "index":
            maker.members["index.json"] = data
        case "manifest":
            maker.point(maker.add(data, MANIFEST))
        case "config":
            maker.config = maker.add(data, CONFIG)
            maker.point(maker.manifest())
        case "docker":
            maker.members = {"manifest.json": data}
        case "docker config":
            text = json.dumps([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": []}]).encode()
            maker.members = {"manifest.json": text, "c.json": data}
    return maker


@pytest.mark.parametrize("nasty", ["twice", "nan"])
def test_twin_that_reads_them(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nasty: str) -> None:
    """json.loads by itself takes the last of two keys, and NaN for a number."""
    lax = lambda data, what: json.loads(data)  # noqa: E731 - a stand-in of one line
    for module in (document, distribution, image_module, formats, content_module):
        for name in ("parse", "parse_value"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lax)
    maker = Maker()
    extra = {"twice": b'"os":"linux","os":"linux"', "nan": b'"os":"linux","x":NaN'}[nasty]
    text = maker.members[f"blobs/sha256/{maker.config['digest'][7:]}"].replace(b'"os": "linux"', extra)
    maker.config = maker.add(text, CONFIG)
    maker.point(maker.manifest())
    assert made.images.load(maker.write(tmp_path / "x.tar"))


def test_an_index_of_ten_gibibytes(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2023-25153: the size in a header is a claim, and the file has holes."""
    path = tmp_path / "x.tar"

    def write(size: int) -> None:
        with path.open("wb") as archive:
            info = tarfile.TarInfo("oci-layout")
            info.size = len(Maker().members["oci-layout"])
            archive.write(info.tobuf() + Maker().members["oci-layout"].ljust(512, b"\0"))
            info = tarfile.TarInfo("index.json")
            info.size = size
            archive.write(info.tobuf(tarfile.GNU_FORMAT))
            archive.truncate(archive.tell() + size + 1024)

    write(10 << 30)
    refused(made, f"archive:{path}", match="larger than 4 MiB")
    write(256 << 20)
    monkeypatch.setattr(file, "DOCUMENT_MAX", 1 << 40)
    with measured() as cost, pytest.raises(Error):
        made.images.load(f"archive:{path}")
    assert cost.memory > MEMORY, "the twin reads all of it"


@pytest.mark.parametrize("twin", [False, True])
def test_indexes_without_end(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    maker = Maker()
    target = maker.manifest()
    for _depth in range(12):
        whole = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [target]}
        target = maker.add(json.dumps(whole).encode(), INDEX)
    maker.point(target)
    source = maker.write(tmp_path / "x.tar")
    if twin:
        monkeypatch.setattr(fetch, "_INDEX_DEPTH", 100)
        monkeypatch.setattr(content_module, "_INDEX_DEPTH", 100)
        assert made.images.load(source)
        return
    refused(made, source, match="without end")


@pytest.mark.parametrize("twin", [False, True])
def test_layers_without_end(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """Four megabytes of manifest name one small layer twenty thousand times; each would take a worker and a snapshot."""
    maker = Maker()
    count = 20 if twin else 10_000
    maker.config = maker.add(
        json.dumps(
            {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(A)] * count}}
        ).encode(),
        CONFIG,
    )
    maker.point(maker.manifest(layers=[maker.layer] * count))
    source = maker.write(tmp_path / "x.tar")
    if twin:
        assert made.images.load(source), "few of them are taken"
        monkeypatch.setattr(distribution, "LAYERS_MAX", 10)
        made.images.remove(made.images.list()[0].id)
        with pytest.raises(Invalid, match="more than 10"):
            made.images.load(source)
        return
    refused(made, source, match="layers")


# -- digests and sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_a_blob_of_other_bytes(made: World, tmp_path: Path, what: str) -> None:
    maker = Maker()
    name = {"layer": maker.layer["digest"], "config": maker.config["digest"], "manifest": maker.manifest()["digest"]}[
        what
    ]
    path = f"blobs/sha256/{name[7:]}"
    maker.members[path] = maker.members[path][:-1] + b" "
    refused(made, maker.write(tmp_path / "x.tar"), match="digest")


def test_twin_that_does_not_hash(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    path = f"blobs/sha256/{maker.layer['digest'][7:]}"
    maker.members[path] = maker.members[path][:-1] + b" "
    real = hashlib.sha256

    class Module:
        @staticmethod
        def sha256(data: bytes = b"") -> Any:
            return real(data) if data else Liar(maker.layer["digest"][7:])

    source = maker.write(tmp_path / "x.tar")
    made.images.load(Maker().write(tmp_path / "good.tar"))
    made.images.remove(made.images.list()[0].id)
    monkeypatch.setattr(ingest_module, "hashlib", Module)
    ingest = made.drivers.store.ingest("r")
    ingest.write(maker.members[path])
    ingest.commit(len(A), Digest(maker.layer["digest"]), {})
    with made.drivers.store.open(Digest(maker.layer["digest"])) as stream:
        assert stream.read() != A, "other bytes are visible under the digest"
    assert source


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_sizes_that_are_not_so(made: World, tmp_path: Path, what: str) -> None:
    for change in (-1, 1, 1 << 40):
        maker = Maker()
        target = {"layer": maker.layer, "config": maker.config}.get(what) or maker.manifest()
        target["size"] += change
        maker.point(target if what == "manifest" else maker.manifest())
        refused(made, maker.write(tmp_path / f"{change}.tar"))


def test_twin_that_does_not_count(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is told no size takes a blob that is shorter than the manifest says."""
    real = LocalIngest.commit
    monkeypatch.setattr(LocalIngest, "commit", lambda self, size, digest, labels: real(self, None, digest, labels))
    maker = Maker()
    maker.layer["size"] += 1
    maker.point(maker.manifest())
    assert made.images.load(maker.write(tmp_path / "x.tar"))


NO_DIGESTS = (
    "sha256:../../../../etc/passwd",
    "sha256:" + "A" * 64,
    "sha512:" + "a" * 128,
    "md5:abc",
    "sha256:",
    "",
    7,
    None,
)


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_digests_that_are_none(made: World, tmp_path: Path, what: str) -> None:
    """CVE-2024-3727."""
    for number, text in enumerate(NO_DIGESTS):
        maker = Maker()
        if what == "manifest":
            maker.point({**maker.manifest(), "digest": text})
        else:
            getattr(maker, what)["digest"] = text
            maker.point(maker.manifest())
        refused(made, maker.write(tmp_path / f"{number}.tar"), match="digest")


def test_twin_that_makes_paths_of_any_text(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the reader of documents and the store look; without the store's look a digest leads anywhere."""
    store = LocalStore(made.root / "twin")
    with pytest.raises(Invalid):
        store.path(NO_DIGESTS[0])  # type: ignore[arg-type]
    monkeypatch.setattr(store_module, "hex_of", lambda digest: digest.partition(":")[2])
    assert (
        store.path(NO_DIGESTS[0]).resolve() == Path(made.root / "twin/blobs/sha256", "../../../../etc/passwd").resolve()
    )  # type: ignore[arg-type]
    store.close()


# -- confusion -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "changes", "message"),
    [
        (MANIFEST, {"manifests": []}, "ambiguous"),
        (MANIFEST, {"fsLayers": []}, "ambiguous"),
        (INDEX, {}, "says it is"),
        (MANIFEST, {"mediaType": INDEX}, "says it is"),
        (MANIFEST, {"layers": [{"mediaType": "text/html", "digest": digest(A), "size": len(A)}]}, "can't be unpacked"),
        (MANIFEST, {"config": {"mediaType": "x/y", "digest": digest(A), "size": len(A)}}, "not an image"),
        (MANIFEST, {"schemaVersion": 1}, "schemaVersion"),
        (MANIFEST, {"layers": "none"}, "layers"),
        (MANIFEST, {"layers": []}, "diff-ids"),
    ],
)
def test_documents_that_are_two_things(
    made: World, tmp_path: Path, media_type: str, changes: dict[str, Any], message: str
) -> None:
    maker = Maker()
    maker.point({**maker.manifest(**changes), "mediaType": media_type})
    refused(made, maker.write(tmp_path / "x.tar"), match=message)


def test_twin_that_takes_a_manifest_for_what_it_likes(
    made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2021-41190: without the comparison the same bytes are a manifest here and an index elsewhere."""
    real = distribution.parse_target

    def lax(data: bytes, target: Descriptor) -> Any:
        whole = json.loads(data)
        whole.pop("manifests", None)
        return real(json.dumps(whole).encode(), target)

    monkeypatch.setattr(content_module, "parse_target", lax)
    maker = Maker()
    maker.point(maker.manifest(manifests=[]))
    assert made.images.load(maker.write(tmp_path / "x.tar"))


def test_a_layer_that_is_another_one_inside(made: World, tmp_path: Path) -> None:
    """The diff-id of the config is not that of the layer: found when it is unpacked, and nothing of it stays."""
    maker = Maker()
    other = tar(member("b", data=b"b"))
    maker.layer = maker.add(gzip.compress(other, mtime=0), f"{LAYER}+gzip")
    maker.point(maker.manifest())
    source = maker.write(tmp_path / "x.tar")
    with bounded(), pytest.raises(Invalid, match="diff-id"):
        made.images.ensure(source, made.drivers)
    assert list(made.drivers.snapshotter.walk()) == []
    nothing_is_left(made)


def test_twin_that_does_not_compare(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worker that answers what the config says, files that nobody vouches for are an image's."""
    real = type(made.workers).unpack
    monkeypatch.setattr(
        type(made.workers), "unpack", lambda *words, **options: (real(*words, **options), Digest(digest(A)))[1]
    )
    maker = Maker()
    maker.layer = maker.add(gzip.compress(tar(member("b", data=b"b")), mtime=0), f"{LAYER}+gzip")
    maker.point(maker.manifest())
    assert made.images.ensure(maker.write(tmp_path / "x.tar"), made.drivers).chain_id == digest(A)


# -- registries, through the engine ----------------------------------------------------------------------------------------


def endless(what: str) -> tuple[Content, Callable[[Handler], bool]]:
    """An image, and a registry that goes on and on when it is asked for one part of it."""
    content = image(tar(member("noise", data=os.urandom(100_000))))
    config = next(d for d in content.blobs if d != content.layers[0].digest)
    wanted = {"manifest": "/manifests/", "config": config, "layer": content.layers[0].digest}[what]

    def script(handler: Handler) -> bool:
        if wanted not in handler.path:
            return False
        handler.close_connection = True
        handler.reply(200, b"", Content_Length="", Content_Type=MANIFEST, Connection="close")
        for _ in range(2048):
            handler.wfile.write(b" " * (1 << 16))
        return True

    return content, script


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_answers_without_end(made: World, what: str) -> None:
    """However much a registry sends, no more is kept in memory and on disk than was announced, and the pull ends."""
    with Scripted(*endless(what)) as server, bounded():
        with pytest.raises(Error):
            list(made.images.pull(f"registry:{server.host}/x:1"))
        assert sum(offset for _ref, offset in made.drivers.store.ingests()) <= 200_000
    nothing_is_left(made)


@pytest.mark.parametrize("what", ["config", "layer"])
def test_twin_that_takes_what_comes(made: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Two steps are missing, either of which would end it: a blob that ends where its descriptor says, and the fetcher's own count.
    (That of manifests: test_registry_hostile, test_twin_without_a_limit.)"""
    stream, seen = BlobStream.__init__, 0

    def longer(self: BlobStream, answer: Any, connect: Any, offset: int, size: int, *rest: Any) -> None:
        stream(self, answer, connect, offset, size if answer.headers.get("Content-Length") else 1 << 40, *rest)

    def write(self: fetch.Fetcher, ingest: Any, target: Descriptor, _arrival: Any) -> None:
        nonlocal seen
        with self._transport.fetch(self._reference, target, ingest.offset) as source:
            while chunk := source.read(1 << 20):
                ingest.write(chunk)
                if ingest.offset > 16 << 20:
                    seen = ingest.offset
                    raise Invalid("test", "enough")
        ingest.commit(target.size, target.digest, {})

    monkeypatch.setattr(BlobStream, "__init__", longer)
    monkeypatch.setattr(fetch.Fetcher, "_write", write)
    with Scripted(*endless(what)) as server, pytest.raises(Invalid, match="enough"):
        list(made.images.pull(f"registry:{server.host}/x:1"))
    assert seen > 16 << 20, "far more than announced lay on disk"
