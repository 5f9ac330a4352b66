"""The network macvlan keeps the contract, on one end of a veth pair."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import ClassVar

import pytest

from wherry.testing import NetworkContract


class TestMacvlan(NetworkContract):
    plugin = "wherry_plugins.network.macvlan"
    options: ClassVar = {"parent": "lan0"}
    must_run = True

    @pytest.fixture(autouse=True)
    def _parent(self) -> Iterator[None]:
        def ip(*words: str) -> None:
            subprocess.run(["ip", "link", *words], check=True, timeout=60)

        ip("add", "lan0", "type", "veth", "peer", "name", "lan1")
        ip("set", "lan0", "up")
        ip("set", "lan1", "up")
        yield
        ip("del", "lan0")
