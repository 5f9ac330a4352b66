"""The network bridge keeps the contract."""

from __future__ import annotations

from wherry.testing import NetworkContract


class TestBridge(NetworkContract):
    plugin = "wherry_plugins.network.bridge"
    must_run = True
