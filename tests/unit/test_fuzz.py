"""What strangers write, fuzzed: tars, manifests and configs, references, challenges of registries, packed layers.

A short run by default, of the same inputs each time; WHERRY_TESTS_ALL=1 makes it long, WHERRY_TESTS_SEED=N another one.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from support.fuzzing import Failure, fuzz
from support.layers import directory, hard, link, member, tar
from wherry.api import Descriptor, Digest, Invalid, NotFound
from wherry.layers.archive import Archive
from wherry.layers.compression import Layer, zstd_module
from wherry.spec.distribution import CONFIG, INDEX, LAYER, MANIFEST, Index, choose, media_type_of, parse_target
from wherry.spec.image import parse_config
from wherry.spec.reference import familiar, normalize, parse_reference
from wherry_plugins.transport.registry.challenge import parse_challenges

ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))
SEED = int(os.environ.get("WHERRY_TESTS_SEED", "1"))
D = "sha256:" + "a" * 64


def rounds(short: int) -> int:
    return 100 * short if ALL else short


# -- tar -------------------------------------------------------------------------------------------------------------------


class Pieces:
    """Answers at most so many bytes at once, as a pipe may."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file = io.BytesIO(data)
        self._most = most

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._most))


def listing(data: bytes, most: int) -> list[Any]:
    """All that an archive says, or how it is refused."""
    found: list[Any] = []
    try:
        archive = Archive(Pieces(data, most))
        for entry in archive:
            fields = [getattr(entry, name) for name in ("name", "type", "mode", "uid", "gid", "size", "mtime", "link")]
            assert entry.size >= 0
            assert b"\0" not in entry.name + entry.link
            size = 0
            for piece in archive.data():
                size += len(piece)
            assert size == entry.size, "all of the data, or an error"
            found.append((fields, entry.sparse, sorted(entry.xattrs.items())))
    except Invalid as error:
        found.append(str(error))
    return found


def read_tar(data: bytes) -> None:
    """However the bytes come, they mean the same."""
    assert listing(data, 1 << 20) == listing(data, 100)


def checksum(chance: random.Random, data: bytes) -> bytes:
    """Right sums for the headers, most of the time, and fields changed before they are made."""
    made = bytearray(data)
    for at in range(0, len(made) - 511, 512):
        if chance.randint(0, 9) and any(made[at : at + 512]):
            block = made[at : at + 512]
            if chance.randint(0, 3) == 0:
                field = chance.choice((0, 100, 108, 116, 124, 136, 156, 157, 257, 345))
                value = chance.choice(
                    (b"0000000\0", b"\x80" + bytes(7), b"\xff" * 8, b"777777777777", b"x", b"L", b"S")
                )
                block[field : field + len(value)] = value
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            made[at : at + 512] = block
    return bytes(made)


TARS = [
    tar(directory("d"), member("d/f", data=b"x" * 700), link("l", "d/f"), hard("h", "d/f")),
    tar(member("f" * 150, data=b"long"), format=tarfile.GNU_FORMAT),
    tar(member("f" * 150, pax_headers={"SCHILY.xattr.user.a": "b", "mtime": "1.5"}), format=tarfile.PAX_FORMAT),
    tar(member("dev", tarfile.CHRTYPE, devmajor=1, devminor=3), member("p", tarfile.FIFOTYPE)),
]
TAR_WORDS = [
    b"ustar\x0000", b"ustar  \0", b"12 path=a/b\n", b"22 SCHILY.xattr.a.b=c\n", b"GNU.sparse.map=0,1", b"GNU.sparse.major=1",
    b"30 mtime=99999999999999999.1\n", b"../", b"/", b"\0" * 512, b"10 size=9\n",
]  # fmt: skip


# -- documents -------------------------------------------------------------------------------------------------------------

MANIFEST_TEXT = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": D, "size": 2},
        "layers": [{"mediaType": LAYER, "digest": D, "size": 3, "annotations": {"a": "b"}}],
    }
).encode()
INDEX_TEXT = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            {"mediaType": MANIFEST, "digest": D, "size": 5, "platform": {"os": "linux", "architecture": "arm64"}}
        ],
    }
).encode()
CONFIG_TEXT = json.dumps(
    {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-05-01T10:00:00.5Z",
        "config": {"Env": ["A=b"], "Cmd": ["x"], "Labels": {"a": "b"}, "Volumes": {"/v": {}}, "User": "1"},
        "rootfs": {"type": "layers", "diff_ids": [D]},
        "history": [{"created_by": "x"}],
    }
).encode()
JSON_WORDS = [
    b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"\\ud800"', b"[" * 40, b'{"a":' * 40, b"9" * 30, b'"manifests":[],',
    b'"fsLayers":[],', b'"layers":[],', b"\xff", D.encode(), b"sha512:", MANIFEST.encode(), INDEX.encode(), b"true",
]  # fmt: skip


def read_document(data: bytes) -> None:
    for media_type in (MANIFEST, INDEX):
        with suppress(Invalid):
            parsed = parse_target(data, Descriptor(media_type, Digest(D), len(data)))
            items = parsed.manifests if isinstance(parsed, Index) else (parsed.config, *parsed.layers)
            for item in items:
                assert len(item.digest) == 71
                assert 0 <= item.size < 1 << 63
            if isinstance(parsed, Index):
                with suppress(NotFound):
                    assert choose(parsed.manifests, "linux/arm64", "x") in parsed.manifests
    with suppress(Invalid):
        assert media_type_of(data, "application/json", "x")


def read_config(data: bytes) -> None:
    with suppress(Invalid):
        config = parse_config(data, Descriptor(CONFIG, Digest(D), len(data)))
        assert config.created >= 0
        assert len(config.chain_ids()) == len(config.diff_ids)
        json.dumps(config.document).encode()


# -- texts -----------------------------------------------------------------------------------------------------------------


def read_reference(data: bytes) -> None:
    """The full form is one and the same by every way, and the short one leads back to it."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        full = normalize(text)
    except Invalid:
        return
    assert normalize(full) == full
    assert normalize(familiar(full)) == full
    parts = parse_reference(full)
    assert parts.tag or parts.digest
    assert not set(full) & set(" \n\0\\")
    assert ".." not in full.split("/")


def read_challenge(data: bytes) -> None:
    with suppress(Invalid):
        for challenge in parse_challenges(data.decode("latin-1"), "x"):
            assert challenge.scheme == challenge.scheme.lower()
            assert challenge.scheme.isascii()
            for name in challenge.parameters:
                assert name.isascii()


# -- packed layers ---------------------------------------------------------------------------------------------------------


def read_layer(data: bytes) -> None:
    layer = Layer(io.BytesIO(data))
    size = 0
    with suppress(Invalid):
        while piece := layer.read(1 << 16):
            size += len(piece)
            assert len(piece) <= 4 << 20
        assert layer.size == size
        assert layer.compressed == len(data)


ZSTD = zstd_module()
PACKED = [gzip.compress(b"x" * 5000), gzip.compress(b"a") + gzip.compress(b"b"), ZSTD.compress(b"y" * 5000), b"plain"]
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes], dict[str, Any]]] = {
    "tar": (
        read_tar, TARS, {"files": ("layers/archive.py",), "words": TAR_WORDS, "prepare": checksum, "rounds": rounds(3000)},
    ),
    "manifest": (
        read_document, [MANIFEST_TEXT, INDEX_TEXT],
        {"files": ("spec/distribution.py", "spec/document.py"), "words": JSON_WORDS, "rounds": rounds(4000)},
    ),
    "config": (
        read_config, [CONFIG_TEXT], {"files": ("spec/image.py", "spec/document.py"), "words": JSON_WORDS, "rounds": rounds(4000)},
    ),
    "reference": (
        read_reference, [b"busybox", b"localhost:5000/a/b:1", b"r.example/a@" + D.encode(), b"docker.io/u/app:x"],
        {
            "files": ("spec/reference.py",), "rounds": rounds(8000), "limit": 400,
            "words": [b"docker.io/", b"library/", b"index.docker.io/", b"[::1]:5", b"@sha256:", b":latest", b"localhost/", b".."],
        },
    ),
    "challenge": (
        read_challenge, [b'Bearer realm="https://a/t",service="s",scope="x:y:pull"', b"Basic realm=x, Negotiate"],
        {
            "files": ("registry/challenge.py",), "rounds": rounds(8000), "limit": 9000,
            "words": [b'="', b"\\", b'\\"', b",", b" ", b"Basic ", b"realm", b"\t", b"a" * 4000],
        },
    ),
    "layer": (read_layer, PACKED, {"files": ("layers/compression.py",), "rounds": rounds(3000)}),
}  # fmt: skip


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_breaks(name: str) -> None:
    target, seeds, options = TARGETS[name]
    assert fuzz(target, seeds, seed=SEED, **options) >= 1, "some inputs reached what the seeds did not"


# -- the fuzzer itself -----------------------------------------------------------------------------------------------------


def staged(data: bytes) -> None:
    """Breaks for inputs that begin with five certain bytes: found step by step, never by chance."""
    if data[:1] != b"w":
        return
    if data[1:2] != b"h":
        return
    if data[2:3] != b"e":
        return
    if data[3:4] != b"r":
        return
    if data[4:5] == b"r":
        raise KeyError("planted")


def test_coverage_leads_to_a_planted_fault() -> None:
    options: dict[str, Any] = {"files": ("test_fuzz.py",), "rounds": 60_000, "limit": 16}
    with pytest.raises(Failure, match="planted"):
        fuzz(staged, [b"seed"], **options)
    assert fuzz(staged, [b"seed"], guided=False, **options) == 0, "without guidance it is not found"


@pytest.mark.parametrize("name", TARGETS)
def test_a_fault_in_a_target_is_found(name: str) -> None:
    """The twin of each run: the same inputs, and a reader that does not bear one kind of refusal."""
    target, seeds, options = TARGETS[name]
    refused: list[bytes] = []

    def careless(data: bytes) -> None:
        target(data)
        if data not in seeds and len(data) % 7 == 3:
            refused.append(data)
            raise ValueError("planted")

    with pytest.raises(Failure, match="planted"):
        fuzz(careless, seeds, seed=SEED, **{**options, "rounds": 500})
    assert refused
