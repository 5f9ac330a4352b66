"""What says that something is not there any more: whiteouts in a layer (OCI image-spec, layer.md, "Whiteouts"), and what overlay
file systems write into their directories for the same end (the kernel's Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import os
import stat

#: Begins the name of a whiteout; what follows is the name that is gone.
WHITEOUT = b".wh."
#: Begins names of AUFS' own, of which only the opaque whiteout means something to others.
META = b".wh..wh."
OPAQUE = b".wh..wh..opq"
#: Begin the xattrs that belong to the file system and not to the file: overlayfs', for root and for others, and fuse-overlayfs'.
XATTRS = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")


def is_removal(status: os.stat_result) -> bool:
    """The mark of a name that is gone: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


__all__ = ["META", "OPAQUE", "WHITEOUT", "XATTRS", "is_removal"]
