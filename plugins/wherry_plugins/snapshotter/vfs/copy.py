"""Copies a tree with everything that makes a file what it is: owner, mode, xattrs, times, links, hard links, devices."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_CHUNK = 1 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeCopy:
    """One copy. checkpoint is called for each directory and may raise. Sockets are left out: nobody listens behind a copy."""

    def __init__(self, *, reflink: bool, checkpoint: Callable[[], None]) -> None:
        self._reflink = reflink
        self._copy_range = True
        self._checkpoint = checkpoint
        self._links: dict[tuple[int, int], str] = {}  # inode with several names -> its first name, from the copy's root
        self._target = -1

    def run(self, source: str, target: str) -> None:
        """Copies the content and the attributes of the directory source onto the existing, empty directory target."""
        self._target = os.open(target, _DIRECTORY)
        try:
            above = os.open(source, _DIRECTORY)
            try:
                self._children(above, self._target, "")
                self._finish(above, self._target, os.fstat(above))
            finally:
                os.close(above)
        finally:
            os.close(self._target)

    def _children(self, source: int, target: int, path: str) -> None:
        self._checkpoint()
        for name in os.listdir(source):
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            here = f"{path}{name}"
            mode = found.st_mode
            if stat.S_ISDIR(mode):
                self._directory(source, target, name, here, found)
                continue
            if stat.S_ISSOCK(mode):
                continue
            if found.st_nlink > 1:
                key = (found.st_dev, found.st_ino)
                first = self._links.get(key)
                if first is not None:
                    os.link(first, name, src_dir_fd=self._target, dst_dir_fd=target, follow_symlinks=False)
                    continue
                self._links[key] = here
            if stat.S_ISREG(mode):
                self._file(source, target, name, found)
                continue
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            else:
                os.mknod(name, stat.S_IFMT(mode) | 0o600, found.st_rdev, dir_fd=target)
            self._finish_name(source, target, name, found)

    def _directory(self, source: int, target: int, name: str, path: str, found: os.stat_result) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        inner_source = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            inner_target = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                self._children(inner_source, inner_target, f"{path}/")
                self._finish(inner_source, inner_target, found)
            finally:
                os.close(inner_target)
        finally:
            os.close(inner_source)

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

    @staticmethod
    def _finish(old: int, new: int, found: os.stat_result) -> None:
        os.fchown(new, found.st_uid, found.st_gid)
        for name in os.listxattr(old):
            os.setxattr(new, name, os.getxattr(old, name))
        os.fchmod(new, stat.S_IMODE(found.st_mode))  # after the owner, which clears set-id bits
        os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))

    @staticmethod
    def _finish_name(source: int, target: int, name: str, found: os.stat_result) -> None:
        """For what can't be opened. xattrs by path, for there is no call by directory and name before Linux 6.13."""
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        old, new = f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}"
        for key in os.listxattr(old, follow_symlinks=False):
            os.setxattr(new, key, os.getxattr(old, key, follow_symlinks=False), follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)
