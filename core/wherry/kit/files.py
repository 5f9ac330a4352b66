"""Paths that others may change meanwhile, and files that outlive a crash: openat2(2), fsync(2), syncfs(2), statfs(2)."""

from __future__ import annotations

from wherry.layers.paths import remove
from wherry.linux.path import (
    OVERLAY_MAGIC,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    filesystem,
    fsync_directory,
    open_at,
    syncfs,
)

__all__ = [
    "OVERLAY_MAGIC",
    "RESOLVE_BENEATH",
    "RESOLVE_NO_MAGICLINKS",
    "filesystem",
    "fsync_directory",
    "open_at",
    "remove",
    "syncfs",
]
