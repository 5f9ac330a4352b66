"""Archives that lead astray, blow up, or are none, through the engine's verbs: refused within 64 MiB and 30 s, with nothing of them
left behind. Each with a twin that lacks the step which refuses it."""

from __future__ import annotations

import bz2
import errno
import gzip
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

from support.cost import bounded
from support.hostile import A, Liar, Maker, nothing_is_left, refused
from support.images_area import World, world
from support.layers import Inside, digest
from support.running import until
from wherry.api import BlobInfo, Digest, Invalid, Labels, NotFound
from wherry.engine.workers.pool import WorkerPool
from wherry.layers import compression
from wherry_plugins.store.local.ingest import LocalIngest
from wherry_plugins.transport.archive import compressed, file, formats


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path / "w") as made:
        yield made


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
    monkeypatch.setattr(WorkerPool, "_run", Inside._run)  # a process of its own would not know of these bounds
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
