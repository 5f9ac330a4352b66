"""snapshotter.vfs: each snapshot is a whole copy of its parent, in a plain directory. Works on every file system, for any user.

``<root>/snapshotter/vfs/`` holds snapshots.db and snapshots/<n>. File data is shared where the file system can (FICLONE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from wherry.api import Capabilities, Context, Registration, Snapshotter, hookimpl

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.vfs.snapshotter import VfsSnapshotter


@frozen
class VfsConfig:
    """[plugin.snapshotter.vfs]. reflink: share file data between copies where the file system can."""

    reflink: bool = True


def _open(config: VfsConfig, context: Context) -> VfsSnapshotter:
    from wherry_plugins.snapshotter.vfs.snapshotter import VfsSnapshotter

    return VfsSnapshotter(config, context)


def chowns() -> bool:
    """Whether ids are remapped by changing the owners of the copy."""
    from wherry.kit import namespaces

    return namespaces.confined() and sum(row[2] for row in namespaces.id_map()) > 1


def _capabilities(_config: VfsConfig, context: Context) -> Capabilities:
    """A bind of a plain directory can be an idmapped mount (mount_setattr(2)): ids are remapped without a chown. An ordinary user,
    to whom the kernel allows none, has the copy's owners changed, as far as there are ids."""
    remap = ("remap-ids",) if "mount.idmapped" in context.features or chowns() else ()
    return Capabilities(frozenset(("mounts", *remap)))


@hookimpl
def wherry_snapshotter() -> Registration[VfsConfig, Snapshotter]:
    return Registration(
        id="vfs",
        config=VfsConfig,
        init=_open,
        capabilities=_capabilities,
    )
