"""transport.archive: both forms, compressed or not, and what hostile archives try."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.images_area import image_layout, pack
from support.layers import Inside, digest, hard, link, member, tar
from wherry.api import Error, Invalid, NotFound
from wherry.layers.compression import zstd_module
from wherry_plugins.transport.archive.transport import ArchiveTransport

LAYER = tar(member("f", data=b"x" * 100_000))
CONFIG = json.dumps(
    {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(LAYER)]}}
).encode()


@pytest.fixture
def transport(tmp_path: Path) -> Iterator[ArchiveTransport]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = ArchiveTransport(scratch, 1 << 30, Inside(tmp_path))
    yield made
    made.close()
    assert list(scratch.iterdir()) == []


def docker(*items: dict[str, Any], members: list[tuple[tarfile.TarInfo, bytes]] | None = None) -> bytes:
    listed = items or ({"Config": "c.json", "RepoTags": ["a:1", "b/c:2"], "Layers": ["x/layer.tar"]},)
    files = members if members is not None else [member("c.json", data=CONFIG), member("x/layer.tar", data=LAYER)]
    return tar(*files, member("manifest.json", data=json.dumps(listed).encode()))


def put(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    return str(path)


def blob(transport: ArchiveTransport, reference: str, descriptor: Any, offset: int = 0) -> bytes:
    with transport.fetch(reference, descriptor, offset) as stream:
        return stream.read()


def manifest_of(transport: ArchiveTransport, reference: str) -> dict[str, Any]:
    (first, *_) = transport.resolve(reference, "linux/amd64")
    text = blob(transport, reference, first.target)
    assert (digest(text), len(text)) == (first.target.digest, first.target.size)
    found: dict[str, Any] = json.loads(text)
    return found


def in_two(compress: Callable[[bytes], bytes], padding: bytes = b"") -> Callable[[bytes], bytes]:
    """Two streams behind each other, as parallel packers write them."""
    return lambda data: compress(data[:3000]) + padding + compress(data[3000:])


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        gzip.compress,
        lambda data: zstd_module().compress(data),
        lzma.compress,
        in_two(lzma.compress, b"\0" * 8),
        bz2.compress,
        in_two(bz2.compress),
    ],
)
def test_docker_archives(transport: ArchiveTransport, tmp_path: Path, wrap: Any) -> None:
    reference = put(tmp_path, wrap(docker()))
    assert [image.name for image in transport.resolve(reference, "")] == ["a:1", "b/c:2"]
    manifest = manifest_of(transport, reference)
    (layer,) = manifest["layers"]
    assert layer == {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(LAYER), "size": len(LAYER)}

    class Wanted:
        digest = layer["digest"]

    assert blob(transport, reference, Wanted) == LAYER
    assert blob(transport, reference, Wanted, 1000) == LAYER[1000:]
    Wanted.digest = manifest["config"]["digest"]
    assert blob(transport, reference, Wanted) == CONFIG
    Wanted.digest = digest(b"other")
    with pytest.raises(NotFound):
        transport.fetch(reference, Wanted, 0)  # type: ignore[arg-type]


def test_layers_that_are_compressed_or_linked(transport: ArchiveTransport, tmp_path: Path) -> None:
    packed = gzip.compress(LAYER, mtime=0)
    config = CONFIG.replace(b"]", b', "' + digest(LAYER).encode() + b'", "' + digest(LAYER).encode() + b'"]')
    item = {"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}
    files = [
        member("c.json", data=config),
        member("a/layer.tar", data=packed),
        link("b/layer.tar", "../a/layer.tar"),
        hard("c/layer.tar", "a/layer.tar"),
    ]
    reference = put(tmp_path, docker(item, members=files))
    layers = manifest_of(transport, reference)["layers"]
    assert {layer["digest"] for layer in layers} == {digest(packed)}
    assert {layer["mediaType"] for layer in layers} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    assert [image.name for image in transport.resolve(reference, "")] == [""]


def test_an_archive_that_is_both_forms_is_oci(transport: ArchiveTransport, tmp_path: Path) -> None:
    target = image_layout(tmp_path / "d", [LAYER])
    (tmp_path / "d/manifest.json").write_text(
        json.dumps([{"Config": "nowhere", "RepoTags": ["other:1"], "Layers": []}])
    )
    reference = str(pack(tmp_path / "d", tmp_path / "x.tar"))
    (image,) = transport.resolve(reference, "")
    assert (image.name, image.target.digest) == ("", target.digest)


@pytest.mark.parametrize(
    "annotations, name",
    [
        ({"org.opencontainers.image.ref.name": "latest"}, ""),
        ({"org.opencontainers.image.ref.name": "reg.example/a:1"}, "reg.example/a:1"),
        (
            {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "docker.io/library/a:1"},
            "docker.io/library/a:1",
        ),
        ({}, ""),
    ],
)
def test_names_of_oci_archives(
    transport: ArchiveTransport, tmp_path: Path, annotations: dict[str, str], name: str
) -> None:
    image_layout(tmp_path / "d", [LAYER])
    index = json.loads((tmp_path / "d/index.json").read_text())
    index["manifests"][0]["annotations"] = annotations
    (tmp_path / "d/index.json").write_text(json.dumps(index))
    (image,) = transport.resolve(str(pack(tmp_path / "d", tmp_path / "x.tar")), "")
    assert image.name == name


def test_a_file_that_changes_is_read_again(transport: ArchiveTransport, tmp_path: Path) -> None:
    reference = put(tmp_path, docker())
    assert len(transport.resolve(reference, "")) == 2
    put(tmp_path, docker({"Config": "c.json", "RepoTags": ["new:1"], "Layers": ["x/layer.tar"]}))
    assert [image.name for image in transport.resolve(reference, "")] == ["new:1"]


def _oci(index: bytes, layout: bytes = b'{"imageLayoutVersion":"1.0.0"}') -> bytes:
    return tar(member("oci-layout", data=layout), member("index.json", data=index))


def _index(**fields: Any) -> bytes:
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + "a" * 64, "size": 1}
    return json.dumps({"schemaVersion": 2, "manifests": [{**entry, **fields}]}).encode()


HOSTILE = {
    "no archive": b"hello" * 1000,
    "empty": b"",
    "neither form": tar(member("x")),
    "cut": docker()[:60_000],
    "index of 5 MiB": _oci(b'{"schemaVersion":2,"manifests":[' + b" " * (5 << 20) + b"]}"),
    "index is no JSON": _oci(b"{"),
    "index is a list": _oci(b"[]"),
    "index with layers": _oci(b'{"schemaVersion":2,"manifests":[],"layers":[]}'),
    "index twice": _oci(b'{"schemaVersion":2,"manifests":[],"manifests":[]}'),
    "nested without end": _oci(b'{"schemaVersion":2,"manifests":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "NaN": _oci(_index(size=float("nan"))),
    "lone surrogate": _oci(_index(mediaType="\ud800")),
    "digest with a path": _oci(_index(digest="sha256:../../../etc/passwd")),
    "digest in capitals": _oci(_index(digest="sha256:" + "A" * 64)),
    "unknown algorithm": _oci(_index(digest="md5:" + "a" * 32)),
    "negative size": _oci(_index(size=-1)),
    "size as text": _oci(_index(size="1")),
    "size as bool": _oci(_index(size=True)),
    "number of 10^6 digits": _oci(b'{"schemaVersion":2,"manifests":[],"x":' + b"9" * 1_000_000 + b"}"),
    "layout of version 2": _oci(_index(), b'{"imageLayoutVersion":"2.0.0"}'),
    "layout is no object": _oci(_index(), b"1"),
    "not UTF-8": _oci(b'{"schemaVersion":2,"manifests":[],"x":"\xff"}'),
    "docker: no object": tar(member("manifest.json", data=b"{}")),
    "docker: list of text": tar(member("manifest.json", data=b'["x"]')),
    "docker: no config": docker(members=[member("x/layer.tar", data=LAYER)]),
    "docker: no layer": docker(members=[member("c.json", data=CONFIG)]),
    "docker: config elsewhere": docker({"Config": "../../etc/passwd", "RepoTags": [], "Layers": []}),
    "docker: links in a circle": docker(members=[link("c.json", "d.json"), link("d.json", "c.json")]),
    "docker: more layers than diff-ids": docker({"Config": "c.json", "RepoTags": [], "Layers": ["x/layer.tar"] * 2}),
    "docker: config of 5 MiB": docker(
        members=[member("c.json", data=b" " * (5 << 20)), member("x/layer.tar", data=LAYER)]
    ),
    "docker: tags as text": docker({"Config": "c.json", "RepoTags": "a:1", "Layers": ["x/layer.tar"]}),
}


#: Why each is refused.
REASONS = {
    "no archive": "a checksum that is no number",
    "empty": "neither an OCI archive nor one of docker save",
    "neither form": "neither an OCI archive nor one of docker save",
    "cut": "is cut short",
    "index of 5 MiB": "larger than 4 MiB",
    "index is no JSON": "is not JSON: Expecting",
    "index is a list": "is not a JSON object",
    "index with layers": "is ambiguous",
    "index twice": "a key is given twice",
    "nested without end": "nested too deeply",
    "NaN": "NaN is no JSON value",
    "lone surrogate": "is not UTF-8",
    "digest with a path": "64 lower-case hex digits",
    "digest in capitals": "64 lower-case hex digits",
    "unknown algorithm": "has the digest 'md5:",
    "negative size": "a number of 0 or more",
    "size as text": "a number of 0 or more",
    "size as bool": "a number of 0 or more",
    "number of 10^6 digits": "is not JSON",
    "layout of version 2": 'version "2.0.0", not 1',
    "layout is no object": "oci-layout: is not a JSON object",
    "not UTF-8": "is not UTF-8",
    "docker: no object": "manifest.json: is not a list of objects",
    "docker: list of text": "manifest.json: is not a list of objects",
    "docker: no config": 'no member "c.json"',
    "docker: no layer": 'no member "x/layer.tar"',
    "docker: config elsewhere": 'no member "../../etc/passwd"',
    "docker: links in a circle": 'no member "c.json"',
    "docker: more layers than diff-ids": "2 layers and 1 diff-ids",
    "docker: config of 5 MiB": "larger than 4 MiB",
    "docker: tags as text": "has to be a list of strings",
}


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_damage_is_told_of_the_archive(transport: ArchiveTransport, tmp_path: Path, pack: Any) -> None:
    packed = pack(docker())
    for wrong, word in (
        (packed[: len(packed) // 2], "cut short"),
        (packed[:20] + bytes([packed[20] ^ 0xFF]) + packed[21:], "data is damaged"),
        (pack(b"no tar at all " * 100), "a checksum that is no number"),
    ):
        reference = put(tmp_path, wrong)
        with pytest.raises(Invalid, match=f'archive "{reference}": .*{word}'):
            transport.resolve(reference, "")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_typed_errors(transport: ArchiveTransport, tmp_path: Path, case: str) -> None:
    assert set(REASONS) == set(HOSTILE)
    with pytest.raises((Invalid, NotFound), match=re.escape(REASONS[case])):
        transport.resolve(put(tmp_path, HOSTILE[case]), "")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = ArchiveTransport(scratch, 1 << 20, Inside(tmp_path))
    with pytest.raises(Invalid, match="unpacks to more"):
        made.resolve(put(tmp_path, gzip.compress(docker(members=[member("big", data=bytes(20 << 20))]))), "")
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing", "relative", "device"])
def test_only_regular_files(transport: ArchiveTransport, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises((Error, OSError)):
        transport.resolve({"relative": "x.tar", "device": "/dev/zero"}.get(kind, str(path)), "")


def test_streams_outlive_the_archive(transport: ArchiveTransport, tmp_path: Path) -> None:
    reference = put(tmp_path, gzip.compress(docker()))
    (layer,) = manifest_of(transport, reference)["layers"]

    class Wanted:
        digest = layer["digest"]

    with transport.fetch(reference, Wanted, 0) as stream:  # type: ignore[arg-type]
        first = stream.read(10)
        transport.close()
        assert first + stream.read() == LAYER
    assert isinstance(stream, io.BufferedReader)
