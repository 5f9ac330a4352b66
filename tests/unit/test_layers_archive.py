"""The tar reader: every form that archives come in, and what it refuses."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.layers import directory, hard, link, member, tar
from wherry.api import Invalid
from wherry.layers import archive, compression
from wherry.layers import archive as archive_module
from wherry.layers.ahead import ReadAhead
from wherry.layers.archive import Archive, TarEntry
from wherry.layers.compression import Layer
from wherry.layers.writer import END, header, padding


def entries(data: bytes) -> list[tuple[TarEntry, bytes]]:
    archive = Archive(io.BytesIO(data))
    return [(entry, b"".join(bytes(piece) for piece in archive.data())) for entry in archive]


@pytest.mark.parametrize("block", [bytes(512), b"\xff" * 512, b"\xff" * 256 + bytes(256), bytes(range(256)) * 2])
def test_the_sum_of_a_header_is_exact(block: bytes) -> None:
    assert archive._sum(block) == sum(block)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_tarfile_writes(form: int) -> None:
    data = tar(
        directory("d"),
        member("d/file", data=b"x" * 1000, mode=0o4755, uid=1000, gid=2000),
        link("d/link", "/target"),
        hard("d/hard", "d/file"),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
        member("fifo", tarfile.FIFOTYPE),
        format=form,
    )
    found = {entry.name.rstrip(b"/"): (entry, content) for entry, content in entries(data)}
    assert [entry.type for entry, _ in found.values()] == [b"5", b"0", b"2", b"1", b"3", b"4", b"6"]
    entry, content = found[b"d/file"]
    assert (entry.mode, entry.uid, entry.gid, entry.size, content) == (0o4755, 1000, 2000, 1000, b"x" * 1000)
    assert found[b"d/link"][0].link == b"/target"
    assert (found[b"null"][0].devmajor, found[b"null"][0].devminor) == (1, 3)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_large_ids_and_times(form: int) -> None:
    name, target = "d/" + "n" * 200, "t" * 300
    data = tar(
        member(name, uid=3_000_000_000, gid=2_999_999_999),
        link("l", target),
        member("t", mtime=1.25 if form == tarfile.PAX_FORMAT else 7),
        member("old", mtime=-5),
        format=form,
    )
    first, second, third, old = (entry for entry, _ in entries(data))
    assert (first.name, first.uid, first.gid) == (name.encode(), 3_000_000_000, 2_999_999_999)
    assert second.link == target.encode()
    assert third.mtime == (1_250_000_000 if form == tarfile.PAX_FORMAT else 7_000_000_000)
    assert old.mtime == -5_000_000_000


def test_xattrs_are_bytes() -> None:
    headers = {"SCHILY.xattr.user.a": "b", "SCHILY.xattr.user.name=x": "v\n1"}
    ((entry, _),) = entries(tar(member("f", pax_headers=headers)))
    assert entry.xattrs == {b"user.a": b"b", b"user.name": b"x=v\n1"}


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    tool = shutil.which("tar")
    assert tool
    with open(tmp_path / "sparse", "wb") as file:
        for offset in range(0, 60 << 16, 2 << 16):  # more pieces than one header holds
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate(70 << 16)
    wanted = (tmp_path / "sparse").read_bytes()
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    data = subprocess.run(
        [tool, "-S", *options, "-cf", "-", "sparse"], cwd=tmp_path, check=True, capture_output=True
    ).stdout
    ((entry, content),) = entries(data)
    assert entry.name == b"sparse"
    assert entry.sparse
    found = bytearray(entry.real_size)
    at = 0
    for offset, length in entry.sparse:
        found[offset : offset + length] = content[at : at + length]
        at += length
    assert bytes(found) == wanted


def test_a_global_header_means_nothing() -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 600}
    ) as archive:
        archive.addfile(tarfile.TarInfo("f"))
    assert [entry.name for entry, _ in entries(buffer.getvalue())] == [b"f"]


def _raw(
    name: bytes = b"f", size: bytes = b"00000000000", kind: bytes = b"0", body: bytes = b"", mode: bytes = b"0000644"
) -> bytes:
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:107] = mode
    block[108:115] = block[116:123] = b"0000000"
    block[124 : 124 + len(size)] = size
    block[136:147] = b"00000000000"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block) + body + bytes(-len(body) % 512)


def _pax(*records: bytes) -> bytes:
    body = b"".join(records)
    return _raw(b"x", b"%011o" % len(body), b"x", body)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return b"%d" % size + rest


BAD = {
    "checksum": bytes([*_raw()[:5], 66, *_raw()[6:]]),
    "negative size": _raw(size=b"\xff" * 12),
    "huge size": _raw(size=b"\x80" + b"\x7f" * 11),
    "size that is no number": _raw(size=b"0000000x000"),
    "cut in the data": _raw(size=b"00000001000", body=b"x" * 100)[:600],
    "cut in a header": _raw()[:300],
    "unknown type": _raw(kind=b"?"),
    "incremental dump": _raw(kind=b"D"),
    "pax record too short": _pax(b"3 a\n") + _raw(),
    "pax record too long": _pax(b"99 path=x\n") + _raw(),
    "pax record without equals": _pax(b"7 abcd\n") + _raw(),
    "pax record without newline": _pax(b"9 path=xy") + _raw(),
    "pax size that is no number": _pax(_record(b"size", b"-1")) + _raw(),
    "pax size of 10^6 digits": _pax(_record(b"size", b"9" * 100_000)) + _raw(),
    "pax mtime that is no number": _pax(_record(b"mtime", b"nan")) + _raw(),
    "pax uid out of range": _pax(_record(b"uid", b"4294967295")) + _raw(),
    "pax loop": _pax(_record(b"path", b"x")) * 20 + _raw(),
    "pax and nothing": _pax(_record(b"path", b"x")),
    "pax of 2 MiB": _raw(b"x", b"%011o" % (2 << 20), b"x", bytes(2 << 20)) + _raw(),
    "NUL in a pax name": _pax(_record(b"path", b"a\0b")) + _raw(),
    "name of 5000 bytes": _pax(_record(b"path", b"a/" * 2500)) + _raw(),
    "link target of 5000 bytes": _pax(_record(b"linkpath", b"a" * 5000)) + _raw(kind=b"2"),
    "sparse of 1 PiB": _pax(
        _record(b"GNU.sparse.major", b"1"),
        _record(b"GNU.sparse.realsize", b"%d" % (1 << 50)),
        _record(b"GNU.sparse.name", b"s"),
    )
    + _raw(size=b"00000001000", body=b"0\n".ljust(512, b"\0")),
    "sparse map out of order": _pax(_record(b"GNU.sparse.map", b"10,5,0,5"), _record(b"GNU.sparse.size", b"20"))
    + _raw(size=b"00000000012", body=b"x" * 10),
    "sparse map unlike its data": _pax(_record(b"GNU.sparse.map", b"0,500"), _record(b"GNU.sparse.size", b"500"))
    + _raw(size=b"00000000012", body=b"x" * 10),
    "sparse map of odd length": _pax(_record(b"GNU.sparse.map", b"0,5,7"), _record(b"GNU.sparse.size", b"20")) + _raw(),
    "sparse map without end": _pax(_record(b"GNU.sparse.major", b"1"), _record(b"GNU.sparse.realsize", b"5"))
    + _raw(size=b"00000001000", body=b"9\n".ljust(512, b"1")),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses(case: str) -> None:
    with pytest.raises(Invalid):
        entries(BAD[case] + (b"" if case.startswith("cut") else END))


_signed = archive_module._signed
#: Which step refuses it, and what stands there in the twin.
TWINS: dict[str, tuple[str, Any]] = {
    "negative size": ("_number", lambda field, what: max(_signed(field, what), 0)),
    "pax loop": ("META_MAX", 100),
    "pax of 2 MiB": ("PAX_MAX", 1 << 30),
    "NUL in a pax name": ("_check_text", lambda label, text: None),
    "name of 5000 bytes": ("NAME_MAX", 1 << 20),
    "link target of 5000 bytes": ("NAME_MAX", 1 << 20),
    "sparse of 1 PiB": ("FILE_MAX", 1 << 60),
    "sparse map out of order": ("_check_map", lambda entry: None),
    "sparse map unlike its data": ("_check_map", lambda entry: None),
    "pax uid out of range": ("_decimal", lambda text, what: int(text) - 1),
}


@pytest.mark.parametrize("case", TWINS)
def test_twins_that_refuse_less(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = TWINS[case]
    monkeypatch.setattr(archive_module, name, value)
    assert entries(BAD[case] + END)


def test_skipped_data_is_not_read() -> None:
    class Source(io.BytesIO):
        skipped = 0

        def skip(self, size: int) -> None:
            self.skipped += size
            self.seek(size, io.SEEK_CUR)

    source = Source(tar(member("big", data=b"x" * 1_000_000), member("small", data=b"y")))
    archive = Archive(source, chunk=512)
    positions = [(entry.name, archive.position) for entry in archive]
    assert [name for name, _ in positions] == [b"big", b"small"]
    assert source.getvalue()[positions[1][1] : positions[1][1] + 1] == b"y"
    assert source.skipped > 900_000


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damage_is_told_or_harmless(data: st.DataObject) -> None:
    """Any bytes at all give entries or Invalid, nothing else."""
    good = bytearray(
        tar(
            directory("d"),
            member("d/" + "x" * 150, data=b"abc" * 300, pax_headers={"SCHILY.xattr.user.a": "b"}),
            hard("h", "d"),
        )
    )
    for _ in range(data.draw(st.integers(0, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        entries(bytes(good[:cut]))
    except Invalid:
        pass


# -- writer ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    name=st.lists(
        st.text("abcdefé/.- ", min_size=1, max_size=130).filter(lambda part: part.strip("/. ")), min_size=1, max_size=3
    ),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 4_294_967_294),
    mtime=st.integers(-(10**18), 4 * 10**18),
    xattr=st.binary(max_size=50),
)
def test_the_writer_says_what_the_reader_reads(name: list[str], mode: int, uid: int, mtime: int, xattr: bytes) -> None:
    entry = TarEntry()
    entry.name = "/".join(name).strip("/").encode()
    entry.mode, entry.uid, entry.gid, entry.mtime = mode, uid, uid, mtime
    entry.size = 5
    entry.xattrs = {b"user.x": xattr}
    data = header(entry) + b"12345" + padding(5) + END
    ((read, content),) = entries(data)
    assert (read.name, read.mode, read.uid, read.gid, read.mtime) == (entry.name, mode, uid, uid, mtime)
    assert (read.xattrs, content) == (entry.xattrs, b"12345")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (info,) = archive
        assert (info.name, info.uid) == (entry.name.decode(), uid)


# -- compression -----------------------------------------------------------------------------------------------------------


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _zstd(data: bytes) -> bytes:
    return bytes(compression.zstd_module().compress(data))


def _read(blob: bytes) -> tuple[bytes, Layer]:
    layer = Layer(io.BytesIO(blob))
    parts = []
    while piece := layer.read():
        parts.append(piece)
    return b"".join(parts), layer


class Dripping(io.BytesIO):
    """One byte at first, as a file that grows may have it."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 if self.tell() < 3 else size)


PACKED = pytest.mark.parametrize("pack", [bytes, _gzip, _zstd])


@PACKED
def test_a_first_byte_by_itself_says_nothing(pack: Any) -> None:
    layer = Layer(Dripping(pack(bytes(1000))))
    assert b"".join(iter(layer.read, b"")) == bytes(1000)
    tiny = Layer(Dripping(b"ab"))
    assert b"".join(iter(tiny.read, b"")) == b"ab"


def test_a_first_byte_by_itself_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "_head", Layer._take)
    assert Layer(Dripping(_gzip(bytes(1000)))).compression == ""


@PACKED
def test_both_digests_in_one_pass(pack: object) -> None:
    import hashlib

    data = os.urandom(3_000_000) + bytes(1_000_000)
    blob = pack(data)  # type: ignore[operator]
    found, layer = _read(blob)
    assert found == data
    assert layer.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("pack", [_gzip, _zstd])
def test_several_members_and_frames(pack: object) -> None:
    assert _read(pack(b"one") + pack(b"two") + pack(b""))[0] == b"onetwo"  # type: ignore[operator]


def test_padding_after_gzip() -> None:
    assert _read(_gzip(b"one") + bytes(1000))[0] == b"one"


def test_skippable_frames_of_zstd() -> None:
    frame = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    assert _read(frame + _zstd(b"one") + frame)[0] == b"one"


@pytest.mark.parametrize("pack", [_gzip, _zstd])
@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_damaged_data(pack: object, damage: str) -> None:
    blob = bytearray(pack(os.urandom(10_000)))  # type: ignore[operator]
    if damage == "cut":
        del blob[5_000:]
    elif damage == "flip":
        blob[5_000] ^= 0xFF
        if pack is _zstd:
            blob[4] ^= 0x18  # its random data is stored as it is, without a checksum: break the header instead
    else:
        blob += b"rubbish"
    with pytest.raises(Invalid):
        _read(bytes(blob))


def test_a_bomb_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = _gzip(bytes(40 << 20))
    monkeypatch.setattr(compression, "FREE", 1 << 20)
    layer = Layer(io.BytesIO(blob))
    with pytest.raises(Invalid, match="bomb"):
        while layer.read():
            pass
    assert layer.size < 20 << 20
    monkeypatch.setattr(compression, "RATIO", 10**9)  # the twin: without the bound all of it comes
    assert len(_read(blob)[0]) == 40 << 20


def test_a_window_of_2_gib_is_refused() -> None:
    head = b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3])  # frame header: a window of 2^31
    with pytest.raises(Invalid):
        _read(head + bytes(100))


# -- reading ahead ---------------------------------------------------------------------------------------------------------


class Slow:
    """Notes how far it was read, and may fail."""

    def __init__(self, pieces: list[bytes | Exception]) -> None:
        self.pieces = pieces
        self.taken = 0

    def read(self, size: int, /) -> bytes:
        if self.taken == len(self.pieces):
            return b""
        piece = self.pieces[self.taken]
        self.taken += 1
        if isinstance(piece, Exception):
            raise piece
        return piece


def test_ahead_gives_what_there_is_and_then_nothing() -> None:
    ahead = ReadAhead(Slow([b"1", b"2", b"3"] * 10))
    assert b"".join(iter(lambda: ahead.read(1), b"")) == b"123" * 10
    assert ahead.read(1) == ahead.read(1) == b""
    ahead.close()


def test_ahead_is_only_a_little_ahead() -> None:
    source = Slow([b"x"] * 100)
    ahead = ReadAhead(source)
    for _ in range(10):
        assert ahead.read(1) == b"x"
    assert source.taken <= 10 + 4 + 1
    ahead.close()
    assert ahead.read(1) == b""
    ahead.close()


def test_ahead_passes_errors_on_in_their_place() -> None:
    ahead = ReadAhead(Slow([b"1", Invalid("layer", "damaged"), b"2"]))
    assert ahead.read(1) == b"1"
    with pytest.raises(Invalid, match="damaged"):
        ahead.read(1)
    assert ahead.read(1) == b""
