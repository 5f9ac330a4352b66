"""Archives and layers as streams (tar(5), OCI image-spec layer.md): entries read and written, and blobs decompressed within bounds."""

from __future__ import annotations

from wherry.layers.archive import DIRECTORY, LINK, REGULAR, SYMLINK, Archive, TarEntry
from wherry.layers.compression import CHUNK, FREE, RATIO, Layer, compression_of
from wherry.layers.paths import clean
from wherry.layers.writer import END, header, padding

__all__ = [
    "CHUNK", "DIRECTORY", "END", "FREE", "LINK", "RATIO", "REGULAR", "SYMLINK", "Archive", "Layer", "TarEntry", "clean",
    "compression_of", "header", "padding",
]  # fmt: skip
