"""What a tree takes on disk."""

from __future__ import annotations

import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def usage(root: int) -> tuple[int, int]:
    """(bytes, inodes) below and with the directory root (a descriptor), a hard-linked file counted once; no mount is crossed.

    However deep the tree is, one descriptor is enough: the way up is "..". Where somebody moves directories meanwhile, so that
    ".." is not where it came from, what was counted until then is the answer.
    """
    first = os.fstat(root)
    total, inodes = first.st_blocks * 512, 1
    seen: set[int] = set()
    fd = os.open(".", _DIRECTORY, dir_fd=root)
    trail: list[tuple[int, list[str]]] = []  # inode of each directory on the way, and its directories still to do
    entered = True
    try:
        while True:
            if entered:
                todo: list[str] = []
                for name in os.listdir(fd):
                    try:
                        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        if found.st_dev != first.st_dev:
                            continue
                        todo.append(name)
                    elif found.st_nlink > 1:
                        if found.st_ino in seen:
                            continue
                        seen.add(found.st_ino)
                    total += found.st_blocks * 512
                    inodes += 1
                trail.append((os.fstat(fd).st_ino, todo))
                entered = False
            todo = trail[-1][1]
            if todo:
                try:
                    below = os.open(todo.pop(), _DIRECTORY, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                os.close(fd)
                fd, entered = below, True
                continue
            trail.pop()
            if not trail:
                return total, inodes
            above = os.open("..", _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = above
            if os.fstat(fd).st_ino != trail[-1][0]:
                return total, inodes
    finally:
        os.close(fd)


__all__ = ["usage"]
