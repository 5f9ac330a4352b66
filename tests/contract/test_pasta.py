"""The network pasta keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.drivers import uplink
from wherry.testing import NetworkContract


class TestPasta(NetworkContract):
    plugin = "wherry_plugins.network.pasta"

    @pytest.fixture(autouse=True)
    def _uplink(self) -> Iterator[None]:
        with uplink():
            yield
