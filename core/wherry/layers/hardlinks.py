"""The other names of a file, for a layer that gives it one more.

Over overlayfs, link(2) copies a file of a lower layer up, and only the name that was linked to: its other names stay with the copy
below (overlayfs.rst, "Non-standard behavior"). A layer means one file by all of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from wherry.linux.path import FUSE_MAGIC, OVERLAY_MAGIC, filesystem


class HardLinks:
    """Looks through the tree below root once, when it is first asked; only on overlayfs it is ever asked."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._names: dict[int, list[bytes]] | None = None
        self._overlay = filesystem(root) in (OVERLAY_MAGIC, FUSE_MAGIC)

    def of(self, found: os.stat_result) -> Sequence[bytes]:
        """Paths from the root that had this inode when the layer was begun or later; none for a file with one name."""
        if not self._overlay or found.st_nlink < 2:
            return ()
        if self._names is None:
            self._names = self._look()
        return self._names.get(found.st_ino, ())

    def _look(self) -> dict[int, list[bytes]]:
        names: dict[int, list[bytes]] = {}
        for path, _directories, files, fd in os.fwalk(b".", dir_fd=self._root):
            for name in files:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                    names.setdefault(status.st_ino, []).append(path + b"/" + name)
        return names


__all__ = ["HardLinks"]
