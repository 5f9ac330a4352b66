"""Hostile layers in a real worker: refused with a typed error, within 64 MiB more memory than an ordinary layer takes, and 30 s."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.layers import digest, directory, joined, link, member, tar
from wherry.api import Descriptor, Invalid, Mount
from wherry.engine.workers.pool import WorkerPool
from wherry.layers.compression import zstd_module

ALL = bool(os.environ.get("WHERRY_TESTS_ALL"))
DEEP = "/".join("d" * 1900)
MORE, SECONDS = 64 << 10, 30  # KiB as getrusage(2) counts them

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")


class Packer:
    """gzip(1) of what is written, without ever holding it; what comes many times is a member of its own, packed once."""

    def __init__(self) -> None:
        self._blob = io.BytesIO()
        self._begin()

    def _begin(self) -> None:
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)

    def write(self, data: bytes, times: int = 1) -> None:
        if times == 1:
            self._blob.write(self._packer.compress(data))
            return
        self._blob.write(self._packer.flush())
        self._begin()
        once = self._packer.compress(data) + self._packer.flush()
        self._blob.write(once * times)
        self._begin()

    def end(self) -> bytes:
        self._blob.write(self._packer.flush())
        return self._blob.getvalue()


def _header(name: bytes, size: int = 0, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:107] = b"0000644"
    block[108:115] = block[116:123] = b"0000000"
    block[124:135] = b"%011o" % size
    block[136:147] = b"00000000000"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def zero_tail() -> bytes:
    """CVE-2017-14992: an archive that is over, and zeros without end."""
    packer = Packer()
    packer.write(tar(member("f")))
    packer.write(bytes(30 << 20), 50)
    return packer.end()


def one_large_file() -> bytes:
    packer = Packer()
    packer.write(_header(b"f", 1500 << 20))
    packer.write(bytes(30 << 20), 50)
    return packer.end()


def extended_headers() -> bytes:
    body = b"6 a=b\n" * 170_000
    packer = Packer()
    for _ in range(10):
        packer.write(_header(b"x", len(body), b"x") + body + bytes(-len(body) % 512))
    packer.write(_header(b"f"))
    return packer.end()


def long_ways() -> bytes:
    packer = Packer()
    packer.write(joined(tar(member(f"{DEEP}/{number}/f")) for number in range(400)))
    return packer.end()


def links_without_end() -> bytes:
    packer = Packer()
    packer.write(
        tar(
            directory("d"),
            *(link(f"l{n}", "d/../" * 800 + f"l{n + 1}") for n in range(200)),
            link("l200", "d"),
            *(member(f"l{n}/f") for n in range(100)),
        )
    )
    return packer.end()


def many_files() -> bytes:
    packer = Packer()
    for number in range(400_000):
        packer.write(_header(b"%d/f" % number if number % 2 else b"f%d" % number))
    return packer.end()


def window() -> bytes:
    """zstd asks for 2 GiB of memory."""
    return b"\x28\xb5\x2f\xfd" + bytes([0x00, (31 - 10) << 3]) + bytes(100)


def zstd_zeros() -> bytes:
    data = zstd_module().compress(bytes(64 << 20), level=1)
    return bytes(zstd_module().compress(tar(member("f")), level=1) + data * 24)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a tail of zeros": zero_tail,
    "zeros by zstd": zstd_zeros,
    "a window of 2 GiB": window,
    "extended headers": extended_headers,
    "long ways": long_ways,
    "links without end": links_without_end,
    **({"a large file": one_large_file, "400,000 files": many_files} if ALL else {}),
}


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool]:
    (tmp_path / "run").mkdir()
    made = WorkerPool(tmp_path / "run")
    yield made
    made.close()


def _peak(pool: WorkerPool, tmp_path: Path, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """Unpacks, and answers how much memory the worker had at most, in KiB."""
    found: list[int] = []
    real = WorkerPool._ask

    def asked(self: WorkerPool, *words: Any) -> bytes:
        answer = real(self, *words)
        found.append(json.loads(answer)["peak"])
        return answer

    tree = tmp_path / digest(blob)[-12:]
    tree.mkdir()
    (tmp_path / "blob").write_bytes(blob)
    with monkeypatch.context() as patch, (tmp_path / "blob").open("rb") as stream:
        patch.setattr(WorkerPool, "_ask", asked)
        try:
            mounts = (Mount("bind", str(tree), "", ("rbind", "rw")),)
            pool.unpack(mounts, Descriptor("", digest(blob), len(blob)), stream, sync=False)  # type: ignore[arg-type]
        finally:
            (peak,) = found
            _peaks.append(peak)
            subprocess.run(
                ["rm", "-rf", "--", tree], check=True, timeout=60
            )  # rmtree of Python 3.11 can't go that deep
    return peak


_peaks: list[int] = []


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_within_bounds(pool: WorkerPool, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = Packer()
    ordinary.write(tar(directory("d"), *(member(f"d/{n}", data=os.urandom(5000)) for n in range(200))))
    usual = _peak(pool, tmp_path, ordinary.end(), monkeypatch)
    blob = HOSTILE[case]()
    assert len(blob) < 12 << 20, "it is small"
    begun = time.monotonic()
    with pytest.raises(Invalid):
        _peak(pool, tmp_path, blob, monkeypatch)
    took = time.monotonic() - begun
    assert _peaks[-1] - usual < MORE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20, "nor does the engine hold it"
    assert took < SECONDS * 3, "on a machine that does something else as well"
