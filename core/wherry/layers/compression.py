"""gzip and zstd, undone in one pass with both digests, in bounded memory and with a bounded yield.

What a layer is compressed with is read from its first bytes, as every runtime does: archives of ``docker save`` carry plain and
compressed layers under one media type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

from wherry.errors import Invalid

CHUNK = 1 << 20
WINDOW_LOG = 26  # zstd: 64 MiB of memory; ``zstd --ultra -22`` of a large file needs 27 and is refused
FREE = 1 << 30  # uncompressed bytes that need no justification
RATIO = 256  # beyond those: so many for each compressed one (deflate alone can give 1032)
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16))


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Layer:
    """Reads a layer's tar out of its blob; ``digest`` and ``diff_id`` are right once read() has answered b"".

    Raises Invalid when the data is damaged, ends early, or yields more than the bounds allow. digested False: nobody asks for
    the digest of the blob. inner: takes what comes out in the place of hashlib's SHA-256.
    """

    def __init__(self, raw: Readable, *, digested: bool = True, inner: Any = None) -> None:
        self._raw = raw
        self._outer = hashlib.sha256() if digested else None
        self._input = self._head()
        self.compression = compression_of(self._input)
        #: Of what comes out; where that is what goes in, one digest is enough.
        self._inner = inner or hashlib.sha256() if self.compression or not digested else None
        self._decoder = _decoder(self.compression)
        self._fresh = True  # at the start of a member or frame
        self.compressed = 0
        self.size = 0
        self._count_input()

    @property
    def digest(self) -> str:
        """ "" where it was not asked for."""
        return f"sha256:{self._outer.hexdigest()}" if self._outer else ""

    @property
    def diff_id(self) -> str:
        found = self._inner or self._outer
        return f"sha256:{found.hexdigest()}" if found else ""

    def read(self, size: int = CHUNK, /) -> bytes:
        """Up to about size bytes; b"" at the end."""
        if not self.compression:
            data, self._input = self._input, self._take()
            self._count_input()
            self.size += len(data)
            if self._inner:
                self._inner.update(data)
            return data
        while True:
            if not self._input and self._needs_input():
                self._input = self._take()
                self._count_input()
                if not self._input:
                    if not self._fresh:
                        raise Invalid("layer", f"the {self.compression} data is cut short")
                    return b""
            data = self._decode(size)
            if data:
                if self._inner:
                    self._inner.update(data)
                self.size += len(data)
                if self.size > FREE and self.size > FREE + RATIO * self.compressed:
                    raise Invalid(
                        "layer", f"{self.compressed} bytes yield more than {self.size - 1}: a decompression bomb"
                    )
                return data

    def _decode(self, size: int) -> bytes:
        if self._fresh:
            stripped = self._input.lstrip(b"\0") if self.compression == "gzip" else self._input
            if not stripped:  # zero padding after the last member, as gzip(1) allows
                self._input = b""
                return b""
            self._input = stripped
            self._decoder = _decoder(self.compression)
            self._fresh = False
        try:
            data: bytes = self._decoder.decompress(self._input, size)
        except Exception as error:
            raise Invalid("layer", f"the {self.compression} data is damaged: {error}") from error
        self._input = b""
        if self._decoder.eof:
            self._input = self._decoder.unused_data
            self._fresh = True
        return data

    def _needs_input(self) -> bool:
        return self._fresh or bool(self._decoder.needs_input)

    def _head(self) -> bytes:
        """Enough to tell what it is: of what still comes there may be no more than a byte."""
        data = self._take()
        while len(data) < len(_ZSTD) and (more := self._take()):
            data += more
        return data

    def _take(self) -> bytes:
        data = self._raw.read(CHUNK)
        if self._outer:
            self._outer.update(data)
        return data

    def _count_input(self) -> None:
        self.compressed += len(self._input)


class LayerWriter:
    """Takes a layer's tar and writes its blob; after ``finish`` digest, size and diff_id tell what came out.

    media_type says how to compress. The same tar gives the same blob. Invalid for a type that nobody could unpack.
    """

    def __init__(self, write: Callable[[bytes], object], media_type: str) -> None:
        self._out = write
        self._outer = hashlib.sha256()
        self._inner = hashlib.sha256()
        self._packer = _packer(media_type)
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._outer.hexdigest()}"

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._inner.hexdigest()}"

    def write(self, data: bytes) -> None:
        self._inner.update(data)
        self._emit(data if self._packer is None else self._packer.compress(data))

    def finish(self) -> None:
        if self._packer is not None:
            self._emit(self._packer.flush())

    def _emit(self, data: bytes) -> None:
        if data:
            self._outer.update(data)
            self.size += len(data)
            self._out(data)


def _packer(media_type: str) -> Any:
    if media_type.endswith(("+gzip", ".gzip")):
        from isal import isal_zlib

        return isal_zlib.compressobj(2, wbits=31)
    if media_type.endswith(("+zstd", ".zstd")):
        return zstd_module().ZstdCompressor(level=3)
    if media_type.endswith(".tar"):
        return None
    raise Invalid("layer", f'the media type "{media_type}" says no compression that is known')


def compression_of(head: bytes) -> str:
    """ "gzip", "zstd" or "" by the first bytes."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith((_ZSTD, *_SKIPPABLE)):
        return "zstd"
    return ""


def _decoder(compression: str) -> Any:
    if compression == "gzip":
        from isal import igzip_lib

        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if compression == "zstd":
        zstd = zstd_module()
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
    return None


def preload() -> None:
    """Imports everything for gzip and zstd, for a process that is about to lose sight of it."""
    for compression in ("gzip", "zstd"):
        _decoder(compression)
        _packer(f"+{compression}")


def zstd_module() -> Any:
    """compression.zstd of Python 3.14, before that its backport."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd  # type: ignore[no-redef,unused-ignore]
    return zstd


__all__ = ["Layer", "LayerWriter", "compression_of", "preload", "zstd_module"]
