"""Archives that lie, lead astray and blow up, through the engine's verbs: refused within 64 MiB and 30 s, with nothing of them left
behind. Each with a twin that lacks the step which refuses it."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cost import MEMORY, bounded, measured
from support.images_area import World, world
from support.layers import digest, member, tar
from support.registry import Content, Handler, Scripted, image
from support.running import until
from wherry.api import BlobInfo, Descriptor, Digest, Error, Invalid, Labels, NotFound
from wherry.engine import content as content_module
from wherry.engine import fetching
from wherry.layers import compression
from wherry.spec import distribution, document
from wherry.spec import image as image_module
from wherry.spec.distribution import CONFIG, INDEX, LAYER, MANIFEST
from wherry_plugins.store.local import ingest as ingest_module
from wherry_plugins.store.local import store as store_module
from wherry_plugins.store.local.ingest import LocalIngest
from wherry_plugins.store.local.store import LocalStore
from wherry_plugins.transport.archive import compressed, file, formats
from wherry_plugins.transport.registry.stream import BlobStream

A = tar(member("a", data=b"a" * 1000))


class Maker:
    """The members of an OCI archive, to be spoilt one by one."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.layer = self.add(A, LAYER)
        self.config = self.add(
            json.dumps(
                {
                    "os": "linux",
                    "architecture": "amd64",
                    "config": {},
                    "rootfs": {"type": "layers", "diff_ids": [digest(A)]},
                }
            ).encode(),
            CONFIG,
        )
        self.point(self.manifest())

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.members[f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def manifest(self, **changes: Any) -> dict[str, Any]:
        whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config, "layers": [self.layer], **changes}
        return self.add(json.dumps(whole).encode(), MANIFEST)

    def point(self, *targets: dict[str, Any]) -> None:
        self.members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": targets}).encode()

    def write(self, path: Path) -> str:
        with tarfile.open(path, "w") as archive:
            for name, data in self.members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return f"archive:{path}"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path / "w") as made:
        yield made


def nothing_is_left(made: World) -> None:
    assert list(made.drivers.store.list()) == []
    made.images.gc()
    assert list(made.drivers.store.walk()) == []
    assert list(made.drivers.store.ingests()) == []
    assert list(made.drivers.snapshotter.walk()) == []
    scratch = made.root / "transport/archive"
    assert not scratch.exists() or os.listdir(scratch) == []


def refused(made: World, source: str, *errors: type[Exception], match: str | None = None) -> None:
    """Loading it and running it both fail, within bounds."""
    for work in (lambda: made.images.load(source), lambda: made.images.ensure(source, made.drivers)):
        with bounded(), pytest.raises(errors or (Invalid,), match=match):
            work()
    nothing_is_left(made)


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
        monkeypatch.setattr(fetching, "_INDEX_DEPTH", 100)
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


class Liar:
    """A hash that says what is wanted."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted

    def update(self, data: bytes) -> None:
        return

    def hexdigest(self) -> str:
        return self._wanted


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


# -- archives --------------------------------------------------------------------------------------------------------------


LINKS = {"link": "/etc/passwd", "up": "../../../etc/passwd", "loop": "pool", "pool": "loop", "self": "self"}


@pytest.mark.parametrize("field", ["Config", "Layers"])
def test_members_that_lead_out(made: World, tmp_path: Path, field: str) -> None:
    """A docker archive names its members itself: they are members, whatever else is called so."""
    for number, name in enumerate(["../../etc/passwd", "/etc/passwd", *LINKS]):
        refused(made, leading(tmp_path / f"{number}.tar", field, name), NotFound, Invalid)


def leading(path: Path, field: str, name: str) -> str:
    item: dict[str, Any] = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l.tar"]}
    item[field] = [name] if field == "Layers" else name
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(A)]}}
    members = {"manifest.json": json.dumps([item]).encode(), "c.json": json.dumps(config).encode(), "l.tar": A}
    with tarfile.open(path, "w") as archive:
        for member_name, data in members.items():
            info = tarfile.TarInfo(member_name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for link_name, target in LINKS.items():
            info = tarfile.TarInfo(link_name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return f"archive:{path}"


def test_twin_that_looks_on_the_host(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        file.ArchiveFile, "document", lambda self, name: Path("/", name).read_bytes() if "etc" in name else b"{}"
    )
    seen: list[bytes] = []
    monkeypatch.setattr(formats, "parse_value", lambda data, what: [{"Config": "../../etc/passwd", "Layers": []}])
    monkeypatch.setattr(
        formats, "parse_config", lambda data, target: seen.append(data) or (_ for _ in ()).throw(Invalid("x", "y"))
    )
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("manifest.json"))
    with pytest.raises(Invalid):
        made.images.load(f"archive:{path}")
    assert seen == [Path("/etc/passwd").read_bytes()]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, compression.zstd_module().compress])
def test_bombs(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]) -> None:
    """Sixty-four megabytes of zeros in a few kilobytes, where one needs no reason: the scratch file ends there and goes."""
    for module in (compression, compressed):
        monkeypatch.setattr(module, "FREE", 1 << 20)
        monkeypatch.setattr(module, "RATIO", 20)
    path = tmp_path / "x.tar"
    path.write_bytes(pack(bytes(64 << 20)))
    refused(made, f"archive:{path}", match="bomb")
    refused(made, f"archive:rootfs:{path}", match="bomb")
    for module in (compression, compressed):  # the twin
        monkeypatch.setattr(module, "RATIO", 1 << 40)
    with pytest.raises(Invalid, match="neither"):
        made.images.load(f"archive:{path}")


def test_what_takes_much_memory_to_unpack(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary of 256 MiB, which xz asks for in twelve bytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}]
    path = tmp_path / "x.tar.xz"
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=filters)
    path.write_bytes(packer.compress(bytes(1 << 20)) + packer.flush())
    refused(made, f"archive:{path}", match="damaged|[Mm]emory")
    monkeypatch.setattr(compressed, "_MEMORY", 1 << 30)
    with pytest.raises(Invalid, match="neither"):
        made.images.load(f"archive:{path}")


@pytest.mark.parametrize("twin", [False, True])
def test_a_million_members(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twin: bool) -> None:
    """The list of members is kept in memory, so it has an end."""
    monkeypatch.setattr(file, "_MEMBERS_MAX", 1 << 40 if twin else 2000)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(2500):
            archive.addfile(tarfile.TarInfo(f"m{number}"))
    with bounded(), pytest.raises(Invalid, match="neither" if twin else "more than 2000 members"):
        made.images.load(f"archive:{path}")


@pytest.mark.parametrize("cut", [1, 100, 600, 1500, 3000])
def test_archives_that_are_cut_short(made: World, tmp_path: Path, cut: int) -> None:
    """CVE-2021-20291 among them: a decompressor that waits for what never comes."""
    path = tmp_path / "x.tar"
    Maker().write(path)
    data = path.read_bytes().rstrip(b"\0")
    for pack in (bytes, gzip.compress, bz2.compress, lzma.compress, compression.zstd_module().compress):
        whole = pack(data)[:-cut]
        path.write_bytes(whole)
        with bounded(), pytest.raises((Invalid, NotFound)):
            made.images.load(f"archive:{path}")
    nothing_is_left(made)


def test_twin_that_does_not_see_the_cut(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the archive is read nor where a blob is stored: half a layer is kept as the layer."""
    scan, commit = file.ArchiveFile._scan, LocalIngest.commit

    def careless_scan(self: file.ArchiveFile) -> None:
        self._size += 1 << 20
        scan(self)

    def careless_commit(self: LocalIngest, size: int | None, digest: Digest, labels: Labels) -> BlobInfo:
        self._hash = Liar(digest[7:])  # type: ignore[assignment]
        return commit(self, None, digest, labels)

    monkeypatch.setattr(file.ArchiveFile, "_scan", careless_scan)
    monkeypatch.setattr(LocalIngest, "commit", careless_commit)
    maker, path = Maker(), tmp_path / "x.tar"
    name = f"blobs/sha256/{maker.layer['digest'][7:]}"
    maker.members[name] = maker.members.pop(name)  # the last one
    maker.write(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(A) + 500])
    assert made.images.load(f"archive:{path}")
    with made.drivers.store.open(Digest(maker.layer["digest"])) as stream:
        assert stream.read() == A[:500]


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "socket", "missing", "relative"])
def test_archives_that_are_no_files(made: World, tmp_path: Path, kind: str) -> None:
    """Opening them does not hang, and nothing is read of them."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o140600)
    where = {"device": "/dev/zero", "relative": "x.tar"}.get(kind, str(path))
    text = {"missing": "does not exist", "relative": "absolute", "socket": "No such device"}.get(
        kind, "not a regular file"
    )
    with bounded(), pytest.raises((Invalid, NotFound, OSError), match=text):
        made.images.load(f"archive:{where}")


def test_twin_that_reads_what_is_no_file(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file.stat, "S_ISREG", lambda mode: True)
    with pytest.raises(Invalid, match="neither"):  # as empty as the device says that it is
        made.images.load("archive:/dev/zero")


def test_twin_that_waits_at_a_fifo(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened as a file is, it holds the engine's thread until somebody writes."""
    path, real, seen = tmp_path / "x", os.open, []
    os.mkfifo(path)

    def patient(name: Any, flags: int, *args: Any, **options: Any) -> int:
        if name == path:
            flags &= ~os.O_NONBLOCK
        return real(name, flags, *args, **options)

    def load() -> None:
        try:
            made.images.load(f"archive:{path}")
        except Invalid as error:
            seen.append(error)

    monkeypatch.setattr(file.os, "open", patient)
    thread = threading.Thread(target=load)
    thread.start()
    until(lambda: writer(path), 30)
    thread.join(30)
    assert seen
    assert not thread.is_alive()


def writer(path: Path) -> bool:
    """Whether somebody waits for one: they get it, and no byte."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


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

    def write(self: fetching.Fetcher, ingest: Any, target: Descriptor) -> None:
        nonlocal seen
        with self._transport.fetch(self._reference, target, ingest.offset) as source:
            while chunk := source.read(1 << 20):
                ingest.write(chunk)
                if ingest.offset > 16 << 20:
                    seen = ingest.offset
                    raise Invalid("test", "enough")
        ingest.commit(target.size, target.digest, {})

    monkeypatch.setattr(BlobStream, "__init__", longer)
    monkeypatch.setattr(fetching.Fetcher, "_write", write)
    with Scripted(*endless(what)) as server, pytest.raises(Invalid, match="enough"):
        list(made.images.pull(f"registry:{server.host}/x:1"))
    assert seen > 16 << 20, "far more than announced lay on disk"
