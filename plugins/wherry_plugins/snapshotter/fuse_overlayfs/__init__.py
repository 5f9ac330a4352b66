"""snapshotter.fuse-overlayfs: layers as directories, put together by fuse-overlayfs(1) where the kernel's overlay can't be had.

``<root>/snapshotter/fuse-overlayfs/`` holds snapshots.db and snapshots/<n>/{fs,work}; a snapshot's directory has its row's number.
Mounts are data: type fuse.fuse-overlayfs, whose source is the program; a bind where one directory is all there is. Whoever mounts
runs the program: the shim for a container, a worker for itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, Snapshotter, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.fuse_overlayfs.snapshotter import FuseOverlaySnapshotter


@frozen
class FuseOverlayConfig:
    """[plugin.snapshotter.fuse-overlayfs]. program: a path, or a name that is looked up in the engine's PATH."""

    program: str = "fuse-overlayfs"


def _probe(config: FuseOverlayConfig, context: Context) -> str | None:
    import shutil

    from wherry.kit import fuse

    if shutil.which(config.program) is None:
        return f'no program "{config.program}"; install the package fuse-overlayfs'
    try:
        os.close(os.open(fuse.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f'"{fuse.DEVICE}" can\'t be opened: {(error.strerror or "").lower()}'
    if any(mark in str(context.root) for mark in ':,\\"'):
        return f'the path "{context.root}" has a character that overlay options give a meaning to'
    return None


def _capabilities(_config: FuseOverlayConfig, _context: Context) -> Capabilities:
    """The program itself shows other ids than are on disk."""
    from wherry.kit import namespaces

    marks = ("userxattr",) if namespaces.confined() else ()
    return Capabilities(frozenset(("mounts", "shared-lower", "rebase", "remap-ids", *marks)))


def _open(config: FuseOverlayConfig, context: Context) -> FuseOverlaySnapshotter:
    from wherry_plugins.snapshotter.fuse_overlayfs.snapshotter import FuseOverlaySnapshotter

    return FuseOverlaySnapshotter(config, context)


@hookimpl
def wherry_snapshotter() -> Registration[FuseOverlayConfig, Snapshotter]:
    return Registration(
        id="fuse-overlayfs", config=FuseOverlayConfig, init=_open, probe=_probe, capabilities=_capabilities
    )
