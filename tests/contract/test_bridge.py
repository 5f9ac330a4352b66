"""The network bridge keeps the contract, with its bridges on the host and in a hub of its own."""

from __future__ import annotations

import pytest

from wherry.testing import NetworkContract


class TestBridge(NetworkContract):
    plugin = "wherry_plugins.network.bridge"
    must_run = True


class TestBridgeInAHub(NetworkContract):
    """As for whoever does not own the host's network."""

    plugin = "wherry_plugins.network.bridge"
    must_run = True

    @pytest.fixture(autouse=True)
    def _not_the_hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wherry_plugins.network.bridge.netns.owns_network", lambda: False)
