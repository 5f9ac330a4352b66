"""What an entry of a layer may bring along: nothing that an overlay file system would take for a mark of its own."""

from __future__ import annotations

from wherry.errors import Invalid
from wherry.layers import archive
from wherry.layers.archive import TarEntry
from wherry.layers.paths import clean, show
from wherry.layers.whiteouts import XATTRS

#: The overlay file systems' own marks would let an image hide, redirect or change the looks of what is below it.
FOREIGN_XATTRS = tuple(mark.encode() for mark in XATTRS)
#: Those that only tell how a file came to its directory. Builders that archive such a directory as it is leave them in their layers,
#: and other runtimes lose them, too; a file without them is the same file.
_TRACES = frozenset(mark + name for mark in FOREIGN_XATTRS for name in (b"impure", b"nlink", b"origin", b"uuid"))


def admitted(entry: TarEntry) -> dict[bytes, bytes]:
    """An entry's xattrs without the traces of overlay file systems. Invalid for one of their marks."""
    for key in entry.xattrs:
        if key.startswith(FOREIGN_XATTRS) and key not in _TRACES:
            name = key.decode(errors="backslashreplace")
            raise Invalid("layer", f'"{show(clean(entry.name))}" has the xattr "{name}", a mark of overlayfs itself')
    return {key: value for key, value in entry.xattrs.items() if key not in _TRACES}


def check_device(entry: TarEntry) -> None:
    """Invalid for a number that does not exist, and for the one that means something else to overlayfs."""
    if entry.devmajor >= 1 << 12 or entry.devminor >= 1 << 20:
        raise Invalid("layer", f'"{show(clean(entry.name))}" has a device number out of range')
    if entry.type == archive.CHAR and not entry.devmajor and not entry.devminor:
        raise Invalid("layer", f'"{show(clean(entry.name))}" is a device 0:0, overlayfs\' mark of a removal')


__all__ = ["FOREIGN_XATTRS", "admitted", "check_device"]
