"""Path look-ups that cannot leave a root: openat2(2) with RESOLVE_*, and what is built from it.

A container's tree is hostile: every name in it is looked up through a descriptor of its root (RESOLVE_IN_ROOT follows links
as if that were "/") or of a file system that we mounted ourselves (RESOLVE_BENEATH without links), and what was found is
checked by descriptor before it is used.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from wherry.linux.syscall import Int, Pointer, Text, bind, call, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16

PROC_MAGIC, SYSFS_MAGIC, DEVPTS_MAGIC, TMPFS_MAGIC, PIPEFS_MAGIC = 0x9FA0, 0x62656572, 0x1CD1, 0x1021994, 0x50495045
CGROUP2_MAGIC, CGROUP_MAGIC, OVERLAY_MAGIC, SELINUX_MAGIC = 0x63677270, 0x27E0EB, 0x794C7630, 0xF97CFF8C
FUSE_MAGIC = 0x65735546

_LINKS = 40  # as the kernel counts them
_ATTEMPTS = 128  # EAGAIN: a rename or mount beside us made ".." unsafe to judge


class OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_openat2 = call("openat2", Int, Text, ctypes.POINTER(OpenHow), ctypes.c_size_t)
_fstatfs = bind("fstatfs", Int, Pointer)
_syncfs = bind("syncfs", Int)
_statfs_buffer = ctypes.create_string_buffer(256)
_statfs_type = ctypes.c_ulong.from_buffer(_statfs_buffer)  # f_type comes first
_hows: dict[tuple[int, int, int], Any] = {}


def open_at(fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), close-on-exec. Raises OSError; EXDEV and ELOOP tell what resolve forbids."""
    key = (flags, mode, resolve)
    how = _hows.get(key)
    if how is None:
        how = _hows[key] = ctypes.pointer(OpenHow(flags | os.O_CLOEXEC, mode, resolve))
    name = os.fsencode(path)
    for _attempt in range(_ATTEMPTS):
        result = _openat2(fd, name, how, 24)
        if result >= 0:
            return int(result)
        if ctypes.get_errno() != errno.EAGAIN:
            break
    return check(-1, path)


def open_in(root: int, path: str | bytes, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Opens a path as a process whose root is the directory root would, links included; magic links are refused."""
    name = os.fsencode(path).lstrip(b"/") or b"."
    return open_at(root, name, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, mode)


def open_below(fd: int, path: str | bytes, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Opens a path below a directory of a file system of ours: no links, no way up, no other mount on the way."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
    return open_at(fd, os.fsencode(path).lstrip(b"/") or b".", flags, resolve, mode)


def filesystem(fd: int) -> int:
    """f_type of fstatfs(2): PROC_MAGIC and so on."""
    check(_fstatfs(fd, _statfs_buffer), "fstatfs")
    return _statfs_type.value


def make_directories(root: int, path: str | bytes, mode: int = 0o755, *, links: int = 0) -> int:
    """An O_PATH descriptor of a directory inside root, made with its parents where it is missing.

    Existing parts are resolved in root, links included. A missing part is made in the directory just opened, by its plain name,
    and opened again without following a link, so that a swap in between makes an error and no file outside. A link that leads
    nowhere is followed in root, and what it leads to is made. NotADirectoryError when the path names something else; ".."
    after a missing part is FileNotFoundError.
    """
    try:
        return _directory(root, path)
    except FileNotFoundError:
        pass
    parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
    done = len(parts)
    current = -1
    while current < 0 and done > 0:
        done -= 1
        try:
            current = _directory(root, b"/".join(parts[:done]) or b".")
        except FileNotFoundError:
            if done == 0:
                raise
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    for index in range(done, len(parts)):
        part = parts[index]
        try:
            if part == b"..":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            try:
                os.mkdir(part, mode, dir_fd=current)
            except FileExistsError:
                if (target := _link(current, part)) is not None:
                    if links == _LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    before = [] if target.startswith(b"/") else parts[:index]
                    return make_directories(
                        root, b"/".join([*before, target, *parts[index + 1 :]]), mode, links=links + 1
                    )
            following = open_at(current, part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve)
        finally:
            os.close(current)
        current = following
    return current


def _link(fd: int, name: bytes) -> bytes | None:
    """What a symbolic link says; None for anything else."""
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


def _directory(root: int, path: str | bytes) -> int:
    return open_in(root, path, os.O_PATH | os.O_DIRECTORY)


def make_target(root: int, path: str | bytes, *, directory: bool, links: int = 0) -> int:
    """An O_PATH descriptor to mount onto: a directory, or a file (made empty, 0644) when directory is False.

    A link that leads nowhere is followed in root, and what it leads to is made, as in ``make_directories``: many an image has such
    an /etc/resolv.conf.
    """
    if directory:
        return make_directories(root, path)
    try:
        fd = open_in(root, path)
    except FileNotFoundError:
        parent, _slash, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            raise
        folder = make_directories(root, parent)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
            try:
                os.close(open_at(folder, name, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, 0o644))
            except FileExistsError:
                if (target := _link(folder, name)) is None:
                    raise
                if links == _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                whole = target if target.startswith(b"/") else b"/".join([parent, target])
                return make_target(root, whole, directory=False, links=links + 1)
            return open_at(folder, name, os.O_PATH | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        finally:
            os.close(folder)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return fd


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """fsync(2) of a directory: the names in it are on disk then, which they are not with their files. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_getcwd = call("getcwd", Pointer, ctypes.c_size_t)
_cwd_buffer = ctypes.create_string_buffer(4096)


def inside() -> bool:
    """Whether the working directory can be reached from this process's root: getcwd(2) says "(unreachable)" when it cannot.

    The C library's getcwd is not asked: it would walk up the tree by itself.
    """
    return bool(_getcwd(_cwd_buffer, 4096) > 0) and _cwd_buffer.raw[:1] == b"/"


def syncfs(fd: int) -> None:
    """syncfs(2): all that was written to fd's file system is on disk when it returns; for overlayfs its upper's."""
    check(_syncfs(fd), "syncfs")
