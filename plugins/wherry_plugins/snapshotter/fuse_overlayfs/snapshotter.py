"""The snapshotter: layers by ``wherry.kit.snapshots.stacked``, merged by a program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.api import Context, IdMap, Invalid, Mount, SnapshotOptions
from wherry.kit.snapshots.rows import SnapshotRow
from wherry.kit.snapshots.stacked import StackedSnapshotter
from wherry.linux import fuse

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

    def _merged(self, row: SnapshotRow, lowers: Sequence[str], own: str, idmap: IdMap) -> Mount:
        upper = (f"upperdir={own}/fs", f"workdir={own}/work") if own else ()
        options = (*(() if own else ("ro",)), f"lowerdir={':'.join(lowers)}", *upper, _ALWAYS)
        return Mount(f"{fuse.PREFIX}fuse-overlayfs", self._program, "", options, idmap)

    def _single(self, row: SnapshotRow, lower: str, idmap: IdMap) -> Mount:
        if idmap.uids or idmap.gids:  # an ordinary user's bind can't be idmapped
            return self._merged(row, [lower], "", idmap)
        return super()._single(row, lower, idmap)
