"""What a layer has, entry by entry, for whoever wants to read it and not to unpack it."""

from __future__ import annotations

import json
from collections.abc import Callable

from wherry.layers.apply import afford
from wherry.layers.archive import BLOCKDEV, CHAR, DIRECTORY, FIFO, LINK, REGULAR, SYMLINK, Archive, TarEntry
from wherry.layers.compression import Layer, Readable
from wherry.layers.paths import clean
from wherry.layers.whiteouts import OPAQUE, WHITEOUT

_KINDS = {
    REGULAR: "file",
    DIRECTORY: "directory",
    LINK: "link",
    SYMLINK: "symlink",
    CHAR: "device",
    BLOCKDEV: "device",
    FIFO: "fifo",
}
Line = tuple[str, str, int, str]


def listing(stream: Readable, write: Callable[[bytes], object]) -> int:
    """Writes a line for each entry, a JSON list of the fields of ``wherry.interfaces.images.LayerFile`` in their order; how many.

    Invalid for what is no layer, and for one with more entries than its size justifies, which could not be unpacked either.
    """
    layer = Layer(stream, digested=False)
    members = Archive(layer)
    entries = text = 0
    for entry in members:
        entries += 1
        text += len(entry.name) + len(entry.link)
        afford(text, entries, members.records, layer.compressed)
        write(json.dumps(_line(entry)).encode() + b"\n")
    return entries


def _line(entry: TarEntry) -> Line:
    path = b"/".join(clean(entry.name))
    directory, _, name = path.rpartition(b"/")
    if name == OPAQUE:
        return _text(directory), "opaque", 0, ""
    if name.startswith(WHITEOUT):
        below = name[len(WHITEOUT) :]
        return _text(directory + b"/" + below if directory else below), "whiteout", 0, ""
    kind = _KINDS[entry.type]
    size = (entry.real_size if entry.sparse is not None else entry.size) if kind == "file" else 0
    return _text(path), kind, size, _text(entry.link) if kind in ("link", "symlink") else ""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


__all__ = ["listing"]
