"""The overlayfs snapshotter keeps the contract."""

from __future__ import annotations

from wherry.testing import SnapshotterContract


class TestOverlayfs(SnapshotterContract):
    plugin = "wherry_plugins.snapshotter.overlayfs"
    must_run = True
