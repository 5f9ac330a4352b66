"""What a layer that was unpacked apart from its parents still needs when it is put over them.

overlayfs hides its marks of removed names only where it merges directories; in one that it takes from a single layer they would be
listed, and could not be looked up (overlayfs.rst, "whiteouts and opaque directories"). Whether a directory is merged only the
parents tell.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from wherry.layers.whiteouts import is_removal

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def drop_idle_removals(own: str, lowers: Sequence[str], removals: Sequence[str], opaque: Sequence[str]) -> None:
    """Takes the marks away in those of the directories removals that nothing is merged with.

    own and lowers are the directories of the layer and of its parents, nearest first; opaque are the xattrs that end the merging.
    """
    stack = [os.open(path, _DIRECTORY) for path in (own, *lowers)]
    try:
        for path in removals:
            merged = _merged(stack, os.fsencode(path).split(b"/"), opaque)
            try:
                if len(merged) == 1:
                    _drop(merged[0])
            finally:
                for fd in merged:
                    os.close(fd)
    finally:
        for fd in stack:
            os.close(fd)


def _merged(stack: Sequence[int], parts: Sequence[bytes], opaque: Sequence[str]) -> list[int]:
    """The directories that make up a path, the layer's own first."""
    current = [os.dup(fd) for fd in stack]
    for part in parts:
        found: list[int] = []
        try:
            for fd in current:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    break  # a file, a link or a removal: what is further down is hidden
                found.append(below)
                if _is_opaque(below, opaque):
                    break
        finally:
            for fd in current:
                os.close(fd)
            current = found
    return current


def _is_opaque(fd: int, opaque: Sequence[str]) -> bool:
    for name in opaque:
        try:
            if os.getxattr(fd, name) == b"y":
                return True
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    return False


def _drop(fd: int) -> None:
    before = os.fstat(fd)
    for name in os.listdir(fd):
        if is_removal(os.stat(name, dir_fd=fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=fd)
    os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


__all__ = ["drop_idle_removals"]
