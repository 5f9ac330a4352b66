"""Archives that were packed as a whole: by gzip or zstd as layers are, or by xz or bzip2, which ``docker load`` takes as well.

Layers themselves may have only the first two (OCI image-spec, layer.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from wherry.api import Invalid
from wherry.kit.archives import CHUNK, FREE, RATIO, Layer, compression_of

LAYER_PACKINGS = frozenset(("gzip", "zstd"))
HEAD = 6
"""So many bytes of a file tell how it is packed."""

_MEMORY = 72 << 20  # xz -9 takes 65 MiB to unpack
_XZ, _BZIP2 = b"\xfd7zXZ\0", b"BZh"


def packing_of(head: bytes) -> str:
    """ "gzip", "zstd", "xz", "bzip2" or "" by the first bytes."""
    if head.startswith(_XZ):
        return "xz"
    return "bzip2" if head.startswith(_BZIP2) else compression_of(head)


def unpacked(raw: BinaryIO, packing: str) -> Iterator[bytes]:
    """The bytes, in pieces of bounded size. Raises Invalid for data that is damaged or cut short."""
    if packing not in ("xz", "bzip2"):
        layer = Layer(raw)
        while piece := layer.read():
            yield piece
        return
    from lzma import LZMAError

    try:
        yield from _streams(raw, packing)
    except (LZMAError, OSError, ValueError) as error:  # of bz2: OSError, ValueError
        raise Invalid("archive", f"the {packing} data is damaged: {error}") from error


def _streams(raw: BinaryIO, packing: str) -> Iterator[bytes]:
    """Several streams may follow each other, with zeros between them in xz. What they yield is bounded as for a layer."""
    decoder = _decoder(packing)
    taken = given = 0
    while data := raw.read(CHUNK):
        taken += len(data)
        while data:
            if decoder.eof:
                if not (data := data.lstrip(b"\0")):
                    break
                decoder = _decoder(packing)
            while True:
                piece = decoder.decompress(data, CHUNK)
                given += len(piece)
                if given > FREE and given > FREE + RATIO * taken:
                    raise Invalid("archive", f"{taken} bytes yield more than {given - 1}: a decompression bomb")
                yield piece
                data = b""
                if decoder.eof or decoder.needs_input:
                    break
            data = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise Invalid("archive", f"the {packing} data is cut short")


def _decoder(packing: str) -> Any:
    if packing == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
