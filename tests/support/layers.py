"""Layers made by hand, and what they unpack to."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from wherry.engine.workers.pool import WorkerPool
from wherry.layers.apply import Applied, apply
from wherry.layers.describe import describe
from wherry.layers.listing import listing


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One member: kind is tarfile's, fields are TarInfo's (linkname, mode, uid, devmajor, pax_headers, ...)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.mtime = 1_000_000_000
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.DIRTYPE, **fields)


def link(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.SYMTYPE, linkname=target, **fields)


def hard(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.LNKTYPE, linkname=target, **fields)


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def unpack(root: Path, layer: bytes, **options: Any) -> Applied:
    """Applies a layer in this process, below root."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    umask = os.umask(0)
    try:
        return apply(fd, io.BytesIO(layer), **options)
    finally:
        os.umask(umask)
        os.close(fd)


def tree(root: Path, *, times: bool = False) -> dict[str, tuple[Any, ...]]:
    """Everything below and with root: kind, mode, owner, content or target, xattrs, hard links; with times mtimes too."""
    found: dict[str, tuple[Any, ...]] = {}
    inodes: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        info = path.lstat()
        name = str(path.relative_to(root))
        what: Any = None
        if stat.S_ISREG(info.st_mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            what = os.readlink(path)
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            what = (os.major(info.st_rdev), os.minor(info.st_rdev))
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in sorted(os.listxattr(path, follow_symlinks=False))
            if not key.startswith("trusted.overlay.")
        }
        same = "" if stat.S_ISDIR(info.st_mode) else inodes.setdefault(info.st_ino, name)
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        found[name] = (stat.filemode(info.st_mode), info.st_uid, info.st_gid, size, what, tuple(xattrs.items()), same)
        if times:
            found[name] += (info.st_mtime_ns,)
    return found


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def joined(members: Iterable[bytes]) -> bytes:
    """Archives one after the other, each without its end mark but the last."""
    parts = list(members)
    return b"".join(part.rstrip(b"\0") + bytes(-len(part.rstrip(b"\0")) % 512) for part in parts[:-1]) + parts[-1]


class Inside(WorkerPool):
    """Workers that read tars in this very process, where a test can reach them."""

    def _run(self, job: str, _details: Any, _roots: Any, stream: BinaryIO | None, other: BinaryIO | None = None) -> Any:
        assert stream is not None
        if job == "describe":
            return describe(stream)
        assert job == "list"
        assert other is not None
        return listing(stream, other.write)
