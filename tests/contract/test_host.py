"""The network host keeps the contract."""

from __future__ import annotations

from wherry.testing import NetworkContract


class TestHost(NetworkContract):
    plugin = "wherry_plugins.network.host"
    must_run = True
