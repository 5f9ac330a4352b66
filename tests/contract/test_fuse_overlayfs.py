"""The fuse-overlayfs snapshotter keeps the contract."""

from __future__ import annotations

from wherry.testing import SnapshotterContract


class TestFuseOverlayfs(SnapshotterContract):
    plugin = "wherry_plugins.snapshotter.fuse_overlayfs"
