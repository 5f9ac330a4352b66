"""Executors that work on the files of the tree just built: devices, masks, read-only paths, sysctls, the terminal.

Each writes through the descriptor of a file system that this child mounted itself, and checks what it opened by device number or
fstatfs(2), since anything that an image or a racing neighbour can name may be a decoy (CVE-2025-31133, -52565, -52881).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios

from wherry.linux import mount, path
from wherry.oci.child import Child, Failure, Function, text
from wherry.oci.execute_root import verify_private

_TIOCGPTPEER, _TIOCSPTLCK = 0x5441, 0x40045431
_NULL = os.makedev(1, 3)
_PTMX = os.makedev(5, 2)
_DEFAULT = b"/dev/"


def devices(child: Child, nodes: tuple[tuple[bytes, int, int, int, int, int], ...]) -> None:
    """Makes (path, mode with type, major, minor, uid, gid) nodes, below /dev by the descriptor of its own tmpfs.

    In a user namespace mknod(2) is refused: there the host's node, sources given beforehand, is bound instead ("device").
    """
    old = os.umask(0)
    try:
        for name, mode, major, minor, uid, gid in nodes:
            folder, last = _folder(child, name)
            try:
                os.mknod(last, mode, os.makedev(major, minor), dir_fd=folder)
            except FileExistsError:
                found = os.stat(last, dir_fd=folder, follow_symlinks=False)
                if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode) or found.st_rdev != os.makedev(major, minor):
                    raise
            finally:
                if folder != child.dev:
                    os.close(folder)
            if uid or gid:
                folder, last = _folder(child, name)
                os.chown(last, uid, gid, dir_fd=folder, follow_symlinks=False)
                if folder != child.dev:
                    os.close(folder)
    finally:
        os.umask(old)


def _folder(child: Child, name: bytes) -> tuple[int, bytes]:
    parent, _slash, last = name.rpartition(b"/")
    if parent == b"/dev" and child.dev >= 0:
        return child.dev, last
    if child.dev >= 0 and name.startswith(_DEFAULT):
        return path.make_directories(child.dev, parent[len(_DEFAULT) :]), last
    return path.make_directories(child.root, parent), last


def links(child: Child, pairs: tuple[tuple[bytes, bytes], ...]) -> None:
    """The symbolic links of /dev: (target, path)."""
    for target, name in pairs:
        folder, last = _folder(child, name)
        try:
            os.symlink(target, last, dir_fd=folder)
        except FileExistsError:
            pass
        finally:
            if folder != child.dev:
                os.close(folder)


def _find(child: Child, name: bytes) -> int:
    """An O_PATH descriptor of a path to hide, below our own /proc or /sys where it lies there; -1 when it does not exist."""
    flags = path.RESOLVE_BENEATH | path.RESOLVE_NO_SYMLINKS | path.RESOLVE_NO_MAGICLINKS
    try:
        if name.startswith(b"/proc/") and child.proc >= 0:
            return path.open_at(child.proc, name[6:], os.O_PATH, flags)
        if name.startswith(b"/sys/") and child.sys >= 0:
            return path.open_at(child.sys, name[5:], os.O_PATH, flags)
        return path.open_in(child.root, name)
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _locate(child: Child, name: bytes) -> tuple[int, bytes, int] | None:
    """(descriptor, name below it, mode) of a path to hide; None when it does not exist.

    An entry of our own /proc is named as it is: the kernel alone makes those, and where there is one name there is no way
    for a link to lead elsewhere. Anything else is a descriptor of the path itself, the caller's to close, and b"".
    """
    entry = name[6:] if name.startswith(b"/proc/") and child.proc >= 0 and not child.has_peers else b""
    if entry and b"/" not in entry and entry not in (b".", b".."):
        try:
            mode = os.stat(entry, dir_fd=child.proc, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISLNK(mode):
            return child.proc, entry, mode
    fd = _find(child, name)
    return None if fd < 0 else (fd, b"", os.fstat(fd).st_mode)


def _null(child: Child) -> int:
    """The character device 1:3 and nothing else, cloned from the node that this child made, else from the host's."""
    for fd, name in ((child.dev, b"null"), (mount.AT_FDCWD, b"/dev/null")):
        if fd == -1:
            continue
        try:
            null = mount.clone_tree(name, dir_fd=fd, flags=mount.AT_SYMLINK_NOFOLLOW)
        except OSError:
            continue
        if verify_null(null):
            return null
        os.close(null)
    raise Failure("FailedPrecondition", "masked paths", "neither container nor host has a /dev/null that is device 1:3")


def verify_null(fd: int) -> bool:
    """Whether a descriptor is the null device (CVE-2025-31133: a link in its place would be bound over the mask)."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL


def mask(child: Child, names: tuple[bytes, ...]) -> None:
    """Hides paths: files below the null device, directories below one shared, empty, read-only tmpfs."""
    null = empty = -1
    try:
        for name in names:
            found = _locate(child, name)
            if found is None:
                continue
            target, entry, mode = found
            try:
                verify_private(child, target, name)
                if stat.S_ISDIR(mode):
                    if empty < 0:
                        empty = mount.new_mount(b"tmpfs", [(b"size", b"0"), (b"nr_inodes", b"2")], mount.ATTR_RDONLY)
                        cover = empty
                    else:
                        cover = mount.clone_tree(b"", dir_fd=empty)
                elif null < 0:
                    null = cover = _null(child)
                else:
                    cover = mount.clone_tree(b"", dir_fd=null)
                mount.move_mount(cover, target, entry)
                if cover not in (null, empty):
                    os.close(cover)
            finally:
                if not entry:
                    os.close(target)
    finally:
        for fd in (null, empty):
            if fd >= 0:
                os.close(fd)


def readonly(child: Child, names: tuple[bytes, ...]) -> None:
    """Makes paths read-only: each is bound over itself, with all that is below it."""
    for name in names:
        found = _locate(child, name)
        if found is None:
            continue
        target, entry, _mode = found
        try:
            verify_private(child, target, name)
            clone = mount.clone_tree(
                entry, dir_fd=target, recursive=True, flags=mount.AT_SYMLINK_NOFOLLOW if entry else 0
            )
            mount.set_attributes(clone, set=mount.ATTR_RDONLY)
            mount.move_mount(clone, target, entry)
            os.close(clone)
        finally:
            if not entry:
                os.close(target)


def sysctl(child: Child, values: tuple[tuple[bytes, bytes], ...]) -> None:
    """Writes (path below /proc/sys, value) through the proc that this child mounted, which fstatfs(2) has confirmed."""
    if child.proc < 0:
        raise Failure("Invalid", "sysctl", "the container has no /proc of its own to write them to")
    for name, value in values:
        fd = path.open_below(child.proc, b"sys/" + name, os.O_WRONLY)
        try:
            if path.filesystem(fd) != path.PROC_MAGIC:
                raise Failure("Denied", f'sysctl "{text(name)}"', "not a file of proc")
            os.write(fd, value)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from None
        finally:
            os.close(fd)


def console(child: Child, rows: int, columns: int, bind: int) -> None:
    """A pseudo-terminal of the container's own devpts as stdio and controlling terminal; the shim gets the master.

    bind: /dev/console is that terminal, for the first process. The slave comes from the master by TIOCGPTPEER, never by name
    (CVE-2025-52565).
    """
    pts = child.pts
    opened = pts < 0
    if opened:
        pts = path.open_in(child.root, b"/dev/pts", os.O_PATH | os.O_DIRECTORY)
    try:
        if path.filesystem(pts) != path.DEVPTS_MAGIC:
            raise Failure("FailedPrecondition", "terminal", "/dev/pts of the container is no devpts")
        master = path.open_below(pts, b"ptmx", os.O_RDWR | os.O_NOCTTY)
    finally:
        if opened:
            os.close(pts)
    if os.fstat(master).st_rdev != _PTMX:
        raise Failure("FailedPrecondition", "terminal", "ptmx of the container is no pty multiplexer")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if rows or columns:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    if bind and child.dev >= 0:
        try:
            os.close(os.open(b"console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=child.dev))
        except FileExistsError:
            pass
        target = path.open_below(child.dev, b"console", os.O_PATH)
        verify_private(child, target, b"/dev/console")
        cover = mount.clone_tree(b"", dir_fd=slave)
        mount.move_mount(cover, target)
        os.close(cover)
        os.close(target)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(slave, number, inheritable=True)
    os.close(slave)
    child.master = master


def own_stdio(child: Child) -> None:
    """Gives the terminal or the pipes to the user, so that /dev/stdout can be opened again; never a file of the caller's."""
    if not child.uid and not child.gid:
        return
    if child.master >= 0:
        os.fchown(0, child.uid, -1)
        return
    for number in (0, 1, 2):
        if path.filesystem(number) == path.PIPEFS_MAGIC:
            try:
                os.fchown(number, child.uid, -1)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EINVAL):
                    raise


STEPS: dict[str, Function] = {
    "devices": devices,
    "links": links,
    "mask": mask,
    "readonly": readonly,
    "sysctl": sysctl,
    "console": console,
    "own_stdio": own_stdio,
}
