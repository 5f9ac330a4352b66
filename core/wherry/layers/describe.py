"""What layer the bytes of a tar are, which nobody has described."""

from __future__ import annotations

from wherry.errors import Invalid
from wherry.layers.archive import Archive
from wherry.layers.compression import Layer, Readable


def describe(stream: Readable) -> dict[str, str | int]:
    """Its "digest", "diff_id" and "compression" ("gzip", "zstd" or ""), and its "size" as it is packed, in bytes. stream is read to its
    end. Invalid for what is no tar, or has no entry."""
    layer = Layer(stream)
    reader = Archive(layer)
    if not sum(1 for _entry in reader):
        raise Invalid("archive", "is an empty tar")
    reader.drain()
    return {
        "digest": layer.digest,
        "diff_id": layer.diff_id,
        "compression": layer.compression,
        "size": layer.compressed,
    }


__all__ = ["describe"]
