"""The vfs snapshotter keeps the contract."""

from __future__ import annotations

from wherry.testing import SnapshotterContract


class TestVfs(SnapshotterContract):
    plugin = "wherry_plugins.snapshotter.vfs"
    must_run = True
