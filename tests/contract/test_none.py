"""The network none keeps the contract."""

from __future__ import annotations

from wherry.testing import NetworkContract


class TestNone(NetworkContract):
    plugin = "wherry_plugins.network.none"
    must_run = True
