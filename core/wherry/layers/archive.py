"""A tar reader for layers: ustar, PAX, GNU long names and sparse files, strict and streaming.

tarfile of the standard library guesses and repairs, drops xattrs' bytes and is slow; a layer has to mean the same to every
runtime, so what is ambiguous is refused. Formats: POSIX.1-2008 pax(1), "pax Interchange Format" and "ustar Interchange
Format"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files". Names stay bytes.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from typing import Protocol

from wherry.errors import Invalid

BLOCK = 512
NAME_MAX = 4096
PAX_MAX = 1 << 20
META_MAX = 16  # headers that may precede one entry: pax, long name, long link
FILE_MAX = 8 << 40  # apparent size of one file: what ext4 and XFS take anyway, less than a sparse bomb wants
SPARSE_MAX = 1 << 16
XATTR_PREFIX = b"SCHILY.xattr."

REGULAR, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_TYPES = frozenset((REGULAR, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO))


class TarSource(Protocol):
    """Where the bytes come from; read answers between 1 and size bytes, b"" at the end. A source that has ``skip(size)`` as well
    is not read where nothing is wanted; it raises Invalid when it is shorter."""

    def read(self, size: int, /) -> bytes: ...


class TarEntry:
    """One member. mtime is in ns; size is what data() yields; sparse: (offset, length) pieces of a file of real_size bytes."""

    __slots__ = (
        "devmajor", "devminor", "gid", "link", "mode", "mtime", "name", "real_size", "size", "sparse", "type", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self) -> None:
        self.name = b""
        self.type = REGULAR
        self.mode = 0o644
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.mtime = 0
        self.link = b""
        self.devmajor = 0
        self.devminor = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: list[tuple[int, int]] | None = None
        self.real_size = 0


class Archive:
    """Iterates over entries; ``data()`` yields the current one's bytes, and what is not read is skipped."""

    def __init__(self, source: TarSource, *, chunk: int = 1 << 20) -> None:
        self._source = source
        self._chunk = chunk
        self._buffer = memoryview(b"")
        self._left = 0  # unread bytes of the current entry
        self._padding = 0
        self.records = 0  # of extended headers, so far
        self.position = 0  # bytes consumed: where the current entry's data begins, before any of it is read

    def __iter__(self) -> Iterator[TarEntry]:
        while (entry := self._next()) is not None:
            yield entry

    def data(self) -> Iterator[memoryview]:
        """The rest of the current entry, in pieces; for a sparse file the pieces of its map, one after the other."""
        while self._left:
            piece = self._some(min(self._left, self._chunk))
            self._left -= len(piece)
            yield piece

    def drain(self) -> None:
        """Reads to the end of the source: padding after the end mark belongs to the digest."""
        self._buffer = memoryview(b"")
        while self._source.read(self._chunk):
            pass

    def _next(self) -> TarEntry | None:
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        pax: dict[bytes, bytes] = {}
        sparse_pax: list[tuple[bytes, bytes]] = []
        long_name = long_link = None
        for _count in range(META_MAX):
            header = self._header()
            if header is None:
                if pax or long_name is not None or long_link is not None:
                    raise _broken("ends after an extended header")
                return None
            kind = header[156:157]
            if kind not in b"xgLKXVD" or kind == b"":
                return self._entry(header, pax, sparse_pax, long_name, long_link)
            if kind == b"D":  # GNU incremental: a directory with a list of names as its data
                raise _broken("holds a GNU incremental dump")
            size = _number(header[124:136], "size")
            if size > PAX_MAX:
                raise _broken(f"has an extended header of {size} bytes, more than {PAX_MAX}")
            body = self._take(size)
            self._skip(-size % BLOCK)
            if kind in b"xX":
                for key, value in _records(body):
                    self.records += 1
                    if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                        sparse_pax.append((key, value))
                    else:
                        pax[key] = value
            elif kind == b"L":
                long_name = body.rstrip(b"\0")
            elif kind == b"K":
                long_link = body.rstrip(b"\0")
            # g (global) and V (volume label) say nothing about a layer's files: other runtimes pass over them too
        raise _broken(f"has more than {META_MAX} extended headers in a row")

    def _header(self) -> bytes | None:
        block = self._block()
        if block is None:
            return None
        if not any(block):
            # POSIX wants two zero blocks; one, or none at all, is what real archives end with as well.
            return None
        stored = _number(block[148:156], "checksum")
        total = _sum(block) - sum(block[148:156]) + 8 * 0x20
        if stored != total:
            signed = total - 256 * sum(1 for byte in block[:148] + block[156:] if byte > 127)
            if stored != signed:
                raise _broken("has a header with a wrong checksum")
        return block

    def _entry(
        self,
        header: bytes,
        pax: dict[bytes, bytes],
        sparse_pax: list[tuple[bytes, bytes]],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> TarEntry:
        entry = TarEntry()
        kind = header[156:157]
        name = _text(header[0:100])
        ustar = header[257:263] == b"ustar\0"
        if ustar and (prefix := _text(header[345:500])):
            name = prefix + b"/" + name
        entry.name = pax.get(b"path", long_name if long_name is not None else name)
        entry.link = pax.get(b"linkpath", long_link if long_link is not None else _text(header[157:257]))
        entry.mode = _number(header[100:108], "mode") & 0o7777
        entry.uid = _decimal(pax[b"uid"], "uid") if b"uid" in pax else _number(header[108:116], "uid")
        entry.gid = _decimal(pax[b"gid"], "gid") if b"gid" in pax else _number(header[116:124], "gid")
        if entry.uid >= 0xFFFFFFFF or entry.gid >= 0xFFFFFFFF:
            raise _broken(f'has an owner out of range at "{_show(entry.name)}"')
        entry.mtime = _time(pax[b"mtime"]) if b"mtime" in pax else _signed(header[136:148], "mtime") * 1_000_000_000
        size = _decimal(pax[b"size"], "size") if b"size" in pax else _number(header[124:136], "size")
        if kind in (b"\0", b"7"):
            kind = REGULAR
        if kind == b"S":
            entry.sparse, entry.real_size = self._old_sparse(header)
            kind = REGULAR
        if kind == REGULAR and entry.name.endswith(b"/"):
            kind = DIRECTORY  # how pre-POSIX archives write one
        if kind not in _TYPES:
            raise _broken(f'has an entry of unknown type {kind!r} at "{_show(entry.name)}"')
        entry.type = kind
        if kind in (CHAR, BLOCKDEV):
            entry.devmajor = _number(header[329:337], "devmajor")
            entry.devminor = _number(header[337:345], "devminor")
        for key, value in pax.items():
            if key.startswith(XATTR_PREFIX):
                entry.xattrs[key[len(XATTR_PREFIX) :]] = value
        # Only files have data; a size elsewhere is a habit of old writers and no bytes follow (as Go's archive/tar reads it).
        entry.size = self._left = size if kind == REGULAR else 0
        self._padding = -entry.size % BLOCK
        if kind == REGULAR:
            self._pax_sparse(entry, pax, sparse_pax)
            if entry.sparse is not None:
                _check_map(entry)
            elif entry.size > FILE_MAX:
                raise _broken(f'has a file of {entry.size} bytes, more than {FILE_MAX}, at "{_show(entry.name)}"')
            else:
                entry.real_size = entry.size
        _check_text("name", entry.name)
        _check_text("link target", entry.link)
        return entry

    def _old_sparse(self, header: bytes) -> tuple[list[tuple[int, int]], int]:
        real_size = _number(header[483:495], "real size")
        pieces = _old_map(header[386:482], 4)
        more = header[482]
        while more:
            block = self._take(BLOCK)
            pieces += _old_map(block, 21)
            more = block[504]
            if len(pieces) > SPARSE_MAX:
                raise _broken("has a sparse file of too many pieces")
        return pieces, real_size

    def _pax_sparse(self, entry: TarEntry, pax: dict[bytes, bytes], listed: list[tuple[bytes, bytes]]) -> None:
        """GNU tar's three PAX forms: 0.0 (repeated records), 0.1 (one list) and 1.0 (the map leads the data)."""
        real = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size"))
        if b"GNU.sparse.name" in pax:
            entry.name = pax[b"GNU.sparse.name"]
        if pax.get(b"GNU.sparse.major") == b"1":
            entry.sparse = self._leading_map(entry)
        elif b"GNU.sparse.map" in pax:
            numbers = [_decimal(item, "sparse map") for item in pax[b"GNU.sparse.map"].split(b",") if item]
            if len(numbers) % 2:
                raise _broken("has a sparse map of odd length")
            entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
        elif listed:
            offsets = [_decimal(value, "sparse map") for key, value in listed if key == b"GNU.sparse.offset"]
            lengths = [_decimal(value, "sparse map") for key, value in listed if key == b"GNU.sparse.numbytes"]
            if len(offsets) != len(lengths):
                raise _broken("has a sparse map of odd length")
            entry.sparse = list(zip(offsets, lengths, strict=True))
        if entry.sparse is not None and real is not None:
            entry.real_size = _decimal(real, "real size")

    def _leading_map(self, entry: TarEntry) -> list[tuple[int, int]]:
        numbers: list[int] = []
        text = b""
        wanted = 1
        while len(numbers) < wanted:
            if self._left < BLOCK:
                raise _broken("has a sparse map that does not end")
            text += self._take(BLOCK)
            self._left -= BLOCK
            entry.size -= BLOCK
            *lines, text = text.split(b"\n")
            numbers += [_decimal(line, "sparse map") for line in lines[: wanted - len(numbers) if numbers else None]]
            if numbers:
                wanted = 1 + 2 * numbers[0]
            if wanted > 2 * SPARSE_MAX or len(text) > BLOCK:
                raise _broken("has a sparse file of too many pieces")
        return list(zip(numbers[1:wanted:2], numbers[2:wanted:2], strict=True))

    # bytes

    def _some(self, most: int) -> memoryview:
        if not self._buffer:
            self._buffer = memoryview(self._source.read(self._chunk))
            if not self._buffer:
                raise _broken("is cut short")
        piece, self._buffer = self._buffer[:most], self._buffer[most:]
        self.position += len(piece)
        return piece

    def _take(self, size: int) -> bytes:
        piece = self._some(size) if size else b""
        if len(piece) == size:
            return bytes(piece)
        parts = [piece]
        size -= len(piece)
        while size:
            parts.append(piece := self._some(size))
            size -= len(piece)
        return b"".join(parts)

    def _skip(self, size: int) -> None:
        skip = getattr(self._source, "skip", None)
        while size:
            if skip is not None and not self._buffer:
                skip(size)
                self.position += size
                return
            size -= len(self._some(size))

    def _block(self) -> bytes | None:
        if not self._buffer:
            self._buffer = memoryview(self._source.read(self._chunk))
            if not self._buffer:
                return None
        return self._take(BLOCK)


def _broken(what: str) -> Invalid:
    return Invalid("layer", f"the archive {what}")


def _show(name: bytes) -> str:
    return name[:200].decode("utf-8", "backslashreplace")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _sum(block: bytes) -> int:
    """Of a header's bytes. The lower half of Adler-32 is one more than the sum modulo 65521, which half a block can't reach."""
    return (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2


def _number(field: bytes, what: str) -> int:
    value = _signed(field, what)
    if value < 0:
        raise _broken(f"has a negative {what}")
    return value


@functools.lru_cache(maxsize=2048)  # modes, owners and times are few in a layer
def _signed(field: bytes, what: str) -> int:
    """Octal text, or GNU's base-256 form with the top bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    text = field.strip(b" \0")
    if not text:
        return 0
    text = text.partition(b"\0")[0].rstrip(b" ")
    if text.strip(b"01234567"):
        raise _broken(f"has a {what} that is no number")
    return int(text, 8)


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise _broken(f"has a {what} that is no number")
    return int(text)


def _time(text: bytes) -> int:
    """Decimal seconds with any number of digits after the point, as ns, rounded down."""
    sign = -1 if text[:1] == b"-" else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    if not whole.isdigit() or (fraction and not fraction.isdigit()) or len(whole) > 12:
        raise _broken("has an mtime that is no number")
    return sign * (int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0"))


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """``<length> <key>=<value>\\n``, where the length counts all of it."""
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 21)
        if space < 0 or not body[at:space].isdigit():
            if not body[at:].strip(b"\0"):
                return
            raise _broken("has a malformed pax record")
        end = at + int(body[at:space])
        if end > len(body) or end <= space + 2 or body[end - 1 : end] != b"\n":
            raise _broken("has a malformed pax record")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise _broken("has a malformed pax record")
        yield key, value
        at = end


def _old_map(block: bytes, count: int) -> list[tuple[int, int]]:
    pieces = []
    for index in range(count):
        item = block[index * 24 : index * 24 + 24]
        if not any(item):
            break
        pieces.append((_number(item[:12], "sparse map"), _number(item[12:24], "sparse map")))
    return pieces


def _check_text(label: str, text: bytes) -> None:
    if b"\0" in text:
        raise _broken(f"has a {label} with a NUL byte")
    if len(text) > NAME_MAX:
        raise _broken(f"has a {label} of {len(text)} bytes, more than {NAME_MAX}")


def _check_map(entry: TarEntry) -> None:
    at = 0
    for offset, length in entry.sparse or ():
        if offset < at:
            raise _broken(f'has a sparse map out of order at "{_show(entry.name)}"')
        at = offset + length
    if at > entry.real_size or entry.real_size > FILE_MAX:
        raise _broken(f'has a sparse file of {max(at, entry.real_size)} bytes at "{_show(entry.name)}"')
    if sum(length for _offset, length in entry.sparse or ()) != entry.size:
        raise _broken(f'has a sparse map unlike its data at "{_show(entry.name)}"')


__all__ = ["BLOCKDEV", "CHAR", "DIRECTORY", "FIFO", "LINK", "REGULAR", "SYMLINK", "Archive", "TarEntry", "TarSource"]
