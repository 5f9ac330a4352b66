"""The mount family: mount(2), umount2(2), pivot_root(2) and the file-descriptor API (fsopen(2), open_tree(2), ...).

Every descriptor that comes back is close-on-exec and the caller's. Paths may be bytes, so that a child that has entered a
container need not encode anything.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from wherry.linux.syscall import Int, Text, Uint, Ulong, bind, call, check, failed

Path = str | bytes

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_MANDLOCK, MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 64, 128, 256, 1024, 2048
MS_BIND, MS_MOVE, MS_REC, MS_SILENT = 4096, 8192, 16384, 32768
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8

# mount_setattr(2), fsmount(2)
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
ATTR_ATIME, ATTR_RELATIME, ATTR_NOATIME, ATTR_STRICTATIME = 0x70, 0, 0x10, 0x20
ATTR_NODIRATIME, ATTR_IDMAP, ATTR_NOSYMFOLLOW = 0x80, 0x100000, 0x200000

OPEN_TREE_CLONE = 1
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x100, 0x800, 0x1000, 0x8000
MOVE_F_SYMLINKS, MOVE_F_EMPTY_PATH, MOVE_T_SYMLINKS, MOVE_T_EMPTY_PATH = 1, 4, 0x10, 0x40
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CREATE, FSCONFIG_RECONFIGURE = 0, 1, 5, 6, 7


class MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


_mount = bind("mount", Text, Text, Text, Ulong, Text)
_umount2 = bind("umount2", Text, Int)
_pivot_root = call("pivot_root", Text, Text)
_fsopen = call("fsopen", Text, Uint)
_fsconfig = call("fsconfig", Int, Uint, Text, Text, Int)
_fsmount = call("fsmount", Int, Uint, Uint)
_open_tree = call("open_tree", Int, Text, Uint)
_move_mount = call("move_mount", Int, Text, Int, Text, Uint)
_mount_setattr = call("mount_setattr", Int, Text, Uint, ctypes.POINTER(MountAttr), ctypes.c_size_t)


def mount(source: Path | None, target: Path, fstype: Path | None, flags: int = 0, data: Path | None = None) -> None:
    """mount(2). Raises OSError with the target as its path."""
    arguments = [None if part is None else os.fsencode(part) for part in (source, target, fstype)]
    check(_mount(*arguments, flags, None if data is None else os.fsencode(data)), target)


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    check(_umount2(os.fsencode(target), flags), target)


def pivot_root(new: Path, old: Path) -> None:
    """pivot_root(2); ("." , ".") stacks the old root over the new one, as its NOTES say."""
    check(_pivot_root(os.fsencode(new), os.fsencode(old)), "pivot_root")


def fsopen(fstype: Path) -> int:
    """fsopen(2), close-on-exec."""
    return check(_fsopen(os.fsencode(fstype), 1), fstype)


def fsconfig(fd: int, command: int, key: Path | None = None, value: Path | None = None, aux: int = 0) -> None:
    """fsconfig(2). The error's text is what the kernel wrote to the context's log, where it wrote anything."""
    text_key = None if key is None else os.fsencode(key)
    if _fsconfig(fd, command, text_key, None if value is None else os.fsencode(value), aux) < 0:
        error = failed(b"fsconfig" if text_key is None else text_key)
        raise OSError(error.errno, f"{error.strerror}{_log(fd)}", error.filename)


def _log(fd: int) -> str:
    """The newest line of the context's message log (" (...)"), or "" when it is empty."""
    try:
        line = os.read(fd, 4096)
    except OSError:
        return ""
    return f" ({line[2:].strip().decode('utf-8', 'replace')})"


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): the configured context as a detached mount, close-on-exec."""
    return check(_fsmount(fd, 1, attributes), "fsmount")


def new_mount(fstype: Path, options: Sequence[tuple[Path, Path | int | None]], attributes: int = 0) -> int:
    """A new instance of a file system as a detached mount: fsopen, fsconfig for each (key, value, descriptor or None), fsmount."""
    context = fsopen(fstype)
    try:
        for key, value in options:
            if isinstance(value, int):
                fsconfig(context, FSCONFIG_SET_FD, key, aux=value)
            else:
                fsconfig(context, FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING, key, value)
        fsconfig(context, FSCONFIG_CREATE)
        return fsmount(context, attributes)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{os.fsdecode(fstype)}: {_text(error.filename)}") from None
    finally:
        os.close(context)


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name)


def open_tree(path: Path, *, dir_fd: int = AT_FDCWD, flags: int = 0) -> int:
    """open_tree(2), close-on-exec: an O_PATH descriptor."""
    flags |= os.O_CLOEXEC | (0 if path else AT_EMPTY_PATH)
    return check(_open_tree(dir_fd, os.fsencode(path), flags), path or "open_tree")


def clone_tree(
    path: Path, *, dir_fd: int = AT_FDCWD, recursive: bool = False, flags: int = 0, propagation: int = MS_PRIVATE
) -> int:
    """A detached copy of the mount at a path, recursive: with all that is mounted below it; close-on-exec.

    open_tree(2) makes a copy that is a peer of a shared mount: whatever is mounted beneath either appears at both
    (mount_namespaces(7)). All copies are made here, and are private before anybody can mount anything beneath them.
    propagation: MS_SLAVE, MS_SHARED, which leaves a copy the peer that it is, or MS_UNBINDABLE instead; with
    MS_SLAVE | MS_SHARED it is a slave that has peers of its own. It goes for the mounts below as well.
    """
    fd = open_tree(path, dir_fd=dir_fd, flags=flags | OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0))
    try:
        for kind in (MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE):
            if propagation & kind:
                set_attributes(fd, propagation=kind, recursive=recursive)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_shared(fd: int) -> bool:
    """Whether the mount that a descriptor is on, in this process's mount namespace, may have peers, at which what is mounted there
    appears too (proc_pid_mountinfo(5), proc_pid_fdinfo(5))."""
    (number,) = (line[7:].strip() for line in _lines(f"/proc/self/fdinfo/{fd}") if line.startswith(b"mnt_id:"))
    for line in _lines("/proc/self/mountinfo"):
        if line.startswith(number + b" "):
            return b" shared:" in line.partition(b" - ")[0]
    return False


def _lines(name: str) -> list[bytes]:
    """A file of proc, by system calls alone: a codec's look-up is nothing for a child on its way into a container."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while piece := os.read(fd, 1 << 16):
            text += piece
    finally:
        os.close(fd)
    return text.splitlines()


def move_mount(mount_fd: int, target_fd: int, path: Path = b"") -> None:
    """move_mount(2) of a detached mount onto a descriptor, or onto a path below one."""
    flags = MOVE_F_EMPTY_PATH | (0 if path else MOVE_T_EMPTY_PATH)
    check(_move_mount(mount_fd, b"", target_fd, os.fsencode(path), flags), path or "move_mount")


def set_attributes(
    fd: int,
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns: int = -1,
    recursive: bool = False,
    path: Path = b"",
) -> None:
    """mount_setattr(2) on the mount that a descriptor (or a path below it) is the root of.

    set and clear are ATTR_*, propagation MS_PRIVATE and so on; userns, a descriptor, makes a detached mount an idmapped one.
    """
    attributes = MountAttr(set, clear, propagation, 0)
    if userns >= 0:
        attributes.attr_set |= ATTR_IDMAP
        attributes.userns_fd = userns
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    result = _mount_setattr(fd, os.fsencode(path), flags, ctypes.byref(attributes), ctypes.sizeof(attributes))
    check(result, path or "mount_setattr")
