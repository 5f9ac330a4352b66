"""Copies a tree with everything that makes a file what it is: owner, mode, xattrs, times, links, hard links, devices."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK = 1 << 30
_OVERFLOW = 65534  # /proc/sys/kernel/overflowuid
Range = tuple[int, int, int]
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeCopy:
    """One copy, by a process that does nothing else: it changes its working directory. uids and gids: (of the source, of the copy,
    size), empty to keep them; an id that none holds becomes the overflow id. Sockets are left out: nobody listens behind a copy."""

    def __init__(self, *, reflink: bool, uids: Sequence[Range] = (), gids: Sequence[Range] = ()) -> None:
        self._uids = uids
        self._gids = gids
        self._reflink = reflink
        self._copy_range = True
        self._links: dict[tuple[int, int], str] = {}  # inode with several names -> its first name, from the copy's root
        self._root = -1

    def run(self, source: str, target: str) -> None:
        """Copies the content and the attributes of the directory source onto the existing, empty directory target.

        Nobody changes either side meanwhile. However deep the tree is, two descriptors are enough: the way up is "..".
        """
        self._root = os.open(target, _DIRECTORY)
        old = new = -1
        try:
            old, new = os.open(source, _DIRECTORY), os.open(target, _DIRECTORY)
            trail = [("", self._children(old, new, ""))]
            while trail:
                path, todo = trail[-1]
                if todo:
                    name = todo.pop()
                    old = _exchange(old, os.open(name, _DIRECTORY, dir_fd=old))
                    os.mkdir(name, 0o700, dir_fd=new)
                    new = _exchange(new, os.open(name, _DIRECTORY, dir_fd=new))
                    trail.append((f"{path}{name}/", self._children(old, new, f"{path}{name}/")))
                    continue
                self._finish(old, new, os.fstat(old))
                trail.pop()
                if trail:
                    old = _exchange(old, os.open("..", _DIRECTORY, dir_fd=old))
                    new = _exchange(new, os.open("..", _DIRECTORY, dir_fd=new))
        finally:
            for fd in (old, new, self._root):
                if fd >= 0:
                    os.close(fd)

    def _children(self, source: int, target: int, path: str) -> list[str]:
        """Copies what is no directory; the names of the directories."""
        directories = []
        for name in os.listdir(source):
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            mode = found.st_mode
            if stat.S_ISDIR(mode):
                directories.append(name)
                continue
            if stat.S_ISSOCK(mode) or (found.st_nlink > 1 and self._linked(target, name, f"{path}{name}", found)):
                continue
            if stat.S_ISREG(mode):
                self._file(source, target, name, found)
                continue
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            else:
                os.mknod(name, stat.S_IFMT(mode) | 0o600, found.st_rdev, dir_fd=target)
            self._finish_name(source, target, name, found)
        return directories

    def _linked(self, target: int, name: str, path: str, found: os.stat_result) -> bool:
        """Links to the copy that another name of this inode has already; False where this is the first."""
        first = self._links.setdefault((found.st_dev, found.st_ino), path)
        if first == path:
            return False
        try:
            os.link(first, name, src_dir_fd=self._root, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # deeper than a path can say: a copy of its own
                raise
            return False
        return True

    def _file(self, source: int, target: int, name: str, found: os.stat_result) -> None:
        old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            new = os.open(name, flags, 0o600, dir_fd=target)
            try:
                if found.st_size:
                    self._data(old, new, found.st_size)
                self._finish(old, new, found)
            finally:
                os.close(new)
        finally:
            os.close(old)

    def _data(self, old: int, new: int, size: int) -> None:
        """A reflink where the file system has them; else the pieces that are no holes, by copy_file_range(2)."""
        if self._reflink:
            try:
                fcntl.ioctl(new, _FICLONE, old)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                    raise
                self._reflink = False
            else:
                return
        os.ftruncate(new, size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(old, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # a hole up to the end
                raise
            end = os.lseek(old, offset, os.SEEK_HOLE)
            while offset < end:
                count = self._piece(old, new, offset, min(end - offset, _CHUNK))
                if not count:
                    return
                offset += count

    def _piece(self, old: int, new: int, offset: int, size: int) -> int:
        if self._copy_range:
            try:
                return os.copy_file_range(old, new, size, offset, offset)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS):
                    raise
                self._copy_range = False
        return os.pwrite(new, os.pread(old, min(size, 1 << 20), offset), offset)

    def _finish(self, old: int, new: int, found: os.stat_result) -> None:
        copy_attributes(old, new, found, _mapped(found.st_uid, self._uids), _mapped(found.st_gid, self._gids))

    def _finish_name(self, source: int, target: int, name: str, found: os.stat_result) -> None:
        """For what can't be opened. xattrs from the working directory: there is no call by directory and name before Linux 6.13."""
        owner = _mapped(found.st_uid, self._uids), _mapped(found.st_gid, self._gids)
        os.chown(name, *owner, dir_fd=target, follow_symlinks=False)
        os.fchdir(source)
        xattrs = {
            key: os.getxattr(name, key, follow_symlinks=False) for key in os.listxattr(name, follow_symlinks=False)
        }
        os.fchdir(target)
        for key, value in xattrs.items():
            os.setxattr(name, key, value, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def copy_attributes(old: int, new: int, found: os.stat_result, uid: int, gid: int) -> None:
    """Owner, xattrs, mode and times of a file or directory that is open as old; found is what fstat(2) says of it."""
    os.fchown(new, uid, gid)
    for name in os.listxattr(old):
        os.setxattr(new, name, os.getxattr(old, name))
    os.fchmod(new, stat.S_IMODE(found.st_mode))  # after the owner, which clears set-id bits
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))


def _mapped(id: int, ranges: Sequence[Range]) -> int:
    for first, other, size in ranges:
        if first <= id < first + size:
            return other + id - first
    return _OVERFLOW if ranges else id


def _exchange(old: int, new: int) -> int:
    os.close(old)
    return new


__all__ = ["TreeCopy"]
