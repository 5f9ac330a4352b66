"""The snapshotter: layers by ``wherry.kit.snapshots.stacked``, merged by the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.api import Context, Mount
from wherry.kit import namespaces
from wherry.kit.snapshots.rows import MountOptions
from wherry.kit.snapshots.stacked import StackedSnapshotter

if TYPE_CHECKING:
    from wherry_plugins.snapshotter.overlayfs import OverlayConfig


class OverlaySnapshotter(StackedSnapshotter):
    """Implements ``wherry.api.LayerSnapshotter`` with "rebase"."""

    def __init__(self, config: OverlayConfig, context: Context) -> None:
        self._options = _options(config)
        self._volatile = config.volatile
        marks = "user" if "userxattr" in self._options else "trusted"
        super().__init__(
            "overlayfs",
            context.root,
            opaque=(f"{marks}.overlay.opaque",),
            remaps="mount.idmapped" in context.features and not namespaces.confined(),
        )

    def merged(self, lowers: Sequence[str], own: str, options: MountOptions) -> Mount:
        lower = f"lowerdir={':'.join(lowers)}"
        if not own:
            return Mount("overlay", "overlay", "", ("ro", lower, *self._options), options.idmap)
        words = (lower, f"upperdir={own}/fs", f"workdir={own}/work", *self._options)
        # Else the end of the mount syncs the whole file system that the upper directory is on, whoever wrote to it.
        if self._volatile if options.volatile is None else options.volatile:
            words = (*words, "volatile")
        return Mount("overlay", "overlay", "", words, options.idmap)


def _options(config: OverlayConfig) -> tuple[str, ...]:
    chosen: list[str] = []
    confined = namespaces.confined()
    for name, wanted in (("index", config.index), ("metacopy", config.metacopy), ("redirect_dir", config.redirect_dir)):
        if confined and name != "index":
            continue  # both are off with userxattr, and must not be named beside it
        # Said either way, since a module parameter may set another default, and left out where the kernel is too old to know it.
        if Path(f"/sys/module/overlay/parameters/{name}").exists():
            chosen.append(f"{name}={'on' if wanted else 'off'}")
    if config.xino:
        chosen.append(f"xino={config.xino}")
    if confined:
        chosen.append("userxattr")  # trusted.* is the initial user namespace's alone
    return tuple(chosen)
