"""Writes tar members as layers have them: ustar, with a PAX header wherever ustar can't say it. The same entry gives the same bytes."""

from __future__ import annotations

from wherry.layers.archive import BLOCK, BLOCKDEV, CHAR, DIRECTORY, XATTR_PREFIX, TarEntry

END = bytes(2 * BLOCK)
_OCTAL7 = 0o7777777
_SIZE_MAX = 0o77777777777


def header(entry: TarEntry) -> bytes:
    """The blocks before an entry's data. A directory's name ends with "/". mtime is written in whole seconds where it has no
    fraction, else as PAX has it."""
    name = entry.name
    if entry.type == DIRECTORY and not name.endswith(b"/"):
        name += b"/"
    pax: dict[bytes, bytes] = {}
    prefix, short = _split(name)
    if short is None:
        pax[b"path"] = name
        prefix, short = b"", name[:100].rstrip(b"/") or b"x"
    link = entry.link
    if len(link) > 100 or not link.isascii():
        pax[b"linkpath"] = link
        link = link[:100]
    seconds, fraction = divmod(entry.mtime, 1_000_000_000)
    if fraction or not 0 <= seconds <= _SIZE_MAX:
        pax[b"mtime"] = _seconds(entry.mtime)
        seconds = min(max(seconds, 0), _SIZE_MAX)
    numbers = {b"uid": entry.uid, b"gid": entry.gid}
    for key, value in numbers.items():
        if value > _OCTAL7:
            pax[key] = b"%d" % value
    if entry.size > _SIZE_MAX:
        pax[b"size"] = b"%d" % entry.size
    for key in sorted(entry.xattrs):
        pax[XATTR_PREFIX + key] = entry.xattrs[key]
    block = _block(entry, prefix, short, link, seconds)
    if not pax:
        return block
    body = b"".join(_record(key, value) for key, value in pax.items())
    extended = TarEntry()
    extended.type, extended.mode, extended.size = b"x", 0o644, len(body)
    return _block(extended, b"", b"PaxHeaders/" + short[:80], b"", 0) + body + padding(len(body)) + block


def padding(size: int) -> bytes:
    """What follows size bytes of data."""
    return bytes(-size % BLOCK)


def _block(entry: TarEntry, prefix: bytes, name: bytes, link: bytes, seconds: int) -> bytes:
    device = entry.type in (CHAR, BLOCKDEV)
    size = entry.size if entry.size <= _SIZE_MAX else 0
    parts = (
        name.ljust(100, b"\0"),
        b"%07o\0" % entry.mode,
        b"%07o\0" % (entry.uid if entry.uid <= _OCTAL7 else 0),
        b"%07o\0" % (entry.gid if entry.gid <= _OCTAL7 else 0),
        b"%011o\0" % size,
        b"%011o\0" % seconds,
        b" " * 8,
        entry.type,
        link.ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        b"%07o\0" % (entry.devmajor if device else 0),
        b"%07o\0" % (entry.devminor if device else 0),
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    block = b"".join(parts)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """(prefix, name) of ustar, or (b"", None) when it does not fit; names that are no ASCII go to PAX, where they are UTF-8."""
    if not name.isascii():
        return b"", None
    if len(name) <= 100:
        return b"", name
    cut = name.rfind(b"/", 0, 156)
    while cut > 0:
        if len(name) - cut - 1 > 100:
            return b"", None
        if name[cut + 1 :]:
            return name[:cut], name[cut + 1 :]
        cut = name.rfind(b"/", 0, cut)
    return b"", None


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return b"%d" % length + rest


def _seconds(mtime: int) -> bytes:
    sign, whole = (b"-", -mtime) if mtime < 0 else (b"", mtime)
    seconds, fraction = divmod(whole, 1_000_000_000)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


__all__ = ["END", "header", "padding"]
