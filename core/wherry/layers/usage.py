"""What a tree takes on disk."""

from __future__ import annotations

import os
import stat


def usage(root: int) -> tuple[int, int]:
    """(bytes, inodes) below and with the directory root (a descriptor), a hard-linked file counted once; no mount is crossed."""
    first = os.fstat(root)
    total, inodes = first.st_blocks * 512, 1
    seen: set[int] = set()
    for _path, directories, files, fd in os.fwalk(".", dir_fd=root, follow_symlinks=False):
        for name in [*files, *directories]:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                if found.st_dev != first.st_dev:
                    directories.remove(name)
                    continue
            elif found.st_nlink > 1:
                if found.st_ino in seen:
                    continue
                seen.add(found.st_ino)
            total += found.st_blocks * 512
            inodes += 1
    return total, inodes


__all__ = ["usage"]
