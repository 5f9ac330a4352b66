"""The snapshotter: layers by ``wherry.kit.snapshots.stacked``, merged by a program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.api import Context, Invalid, Mount, SnapshotOptions
from wherry.kit import fuse
from wherry.kit.snapshots.rows import MountOptions
from wherry.kit.snapshots.stacked import StackedSnapshotter

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.fuse_overlayfs import FuseOverlayConfig

#: What the program writes first, by its rights, and what it reads besides.
_OPAQUE = ("trusted.overlay.opaque", "user.fuseoverlayfs.opaque", "user.overlay.opaque")
#: What a container has written is in the upper directory when write(2) returns, for whoever reads it there.
_ALWAYS = "writeback=0"


class FuseOverlaySnapshotter(StackedSnapshotter):
    """Implements ``wherry.api.LayerSnapshotter`` with "rebase"."""

    def __init__(self, config: FuseOverlayConfig, context: Context) -> None:
        super().__init__("fuse-overlayfs", context.root, opaque=_OPAQUE, remaps=True)
        self._program = os.path.abspath(shutil.which(config.program) or config.program)

    def prepare(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self._on_a_layer(key, parent, options)
        return super().prepare(key, parent, options)

    def view(self, key: str, parent: str, options: SnapshotOptions = SnapshotOptions()) -> tuple[Mount, ...]:
        self._on_a_layer(key, parent, options)
        return super().view(key, parent, options)

    @staticmethod
    def _on_a_layer(key: str, parent: str, options: SnapshotOptions) -> None:
        if (options.idmap.uids or options.idmap.gids) and not parent:
            raise Invalid(f'snapshot "{key}"', "there is no layer whose ids could be remapped")

    def merged(self, lowers: Sequence[str], own: str, options: MountOptions) -> Mount:
        upper = (f"upperdir={own}/fs", f"workdir={own}/work") if own else ()
        words = (*(() if own else ("ro",)), f"lowerdir={':'.join(lowers)}", *upper, _ALWAYS)
        return Mount(f"{fuse.PREFIX}fuse-overlayfs", self._program, "", words, options.idmap)

    def single(self, lower: str, options: MountOptions) -> Mount:
        if options.idmap.uids or options.idmap.gids:  # an ordinary user's bind can't be idmapped
            return self.merged([lower], "", options)
        return super().single(lower, options)
