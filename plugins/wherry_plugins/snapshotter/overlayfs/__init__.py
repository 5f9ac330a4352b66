"""snapshotter.overlayfs: layers as directories, put together by the kernel's overlay file system.

``<root>/snapshotter/overlayfs/`` holds snapshots.db and snapshots/<n>/{fs,work}; a snapshot's directory has its row's number.
Mounts are data: type overlay with lowerdir, upperdir and workdir; a bind where one directory is all there is. Source: the kernel's
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, Snapshotter, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.overlayfs.snapshotter import OverlaySnapshotter


@frozen
class OverlayConfig:
    """[plugin.snapshotter.overlayfs]: mount options, as the kernel's documentation names them.

    index: keep hard links together over a copy-up; off, because it ties an upper directory to its lowers' inodes. metacopy: a chown
    or chmod copies up no data. redirect_dir: a directory of a lower layer can be renamed. With either of the last two an upper
    directory no longer holds all of its change by itself. xino: "on", "off" or "auto", "" leaves it to the kernel. volatile: skip
    every sync of any container's files (never while unpacking); after a power cut such a container can't be started again. One that
    removes itself is always mounted so, unless volumes are filled from its image.
    """

    index: bool = False
    metacopy: bool = False
    redirect_dir: bool = False
    xino: str = ""
    volatile: bool = False


def _probe(config: OverlayConfig, context: Context) -> str | None:
    from wherry.kit import namespaces
    from wherry.kit.files import OVERLAY_MAGIC, filesystem

    if config.xino not in ("", "on", "off", "auto"):
        return f'xino = "{config.xino}": not "on", "off", "auto" or ""'
    if (config.metacopy or config.redirect_dir) and namespaces.confined():
        return "metacopy and redirect_dir are for root: an ordinary user's overlay has userxattr, which excludes them"
    if "overlay" not in context.features:
        filesystems = Path("/proc/filesystems")
        if not filesystems.exists() or "\toverlay\n" not in filesystems.read_text(encoding="ascii"):
            return "the kernel has no overlay file system"
    if any(mark in str(context.root) for mark in ':,\\"'):
        return f'the path "{context.root}" has a character that overlay options give a meaning to'
    where = next(path for path in (context.root, *context.root.parents) if path.exists())
    import os

    fd = os.open(where, os.O_PATH | os.O_CLOEXEC)
    try:
        if filesystem(fd) == OVERLAY_MAGIC:
            return f'"{where}" lies on an overlay file system, which can\'t be the upper of another'
    finally:
        os.close(fd)
    return None


def _capabilities(config: OverlayConfig, context: Context) -> Capabilities:
    from wherry.kit import namespaces

    # in an ordinary user's namespace the kernel idmaps no mount of a disk's file system
    remap = ("remap-ids",) if "mount.idmapped" in context.features else ()
    marks = ("userxattr",) if namespaces.confined() else remap
    # where a directory may be another's, only a mount knows what is merged
    apart = () if config.redirect_dir else ("rebase",)
    return Capabilities(frozenset(("mounts", "shared-lower", *apart, *marks)))


def _open(config: OverlayConfig, context: Context) -> OverlaySnapshotter:
    from wherry_plugins.snapshotter.overlayfs.snapshotter import OverlaySnapshotter

    return OverlaySnapshotter(config, context)


@hookimpl
def wherry_snapshotter() -> Registration[OverlayConfig, Snapshotter]:
    return Registration(id="overlayfs", config=OverlayConfig, init=_open, probe=_probe, capabilities=_capabilities)
