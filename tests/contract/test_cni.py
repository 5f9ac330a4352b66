"""The network cni keeps the contract, with Debian's plugins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from support.cni import BIN, need_plugins, no_rules
from wherry.testing import NetworkContract


class TestCni(NetworkContract):
    plugin = "wherry_plugins.network.cni"
    options: ClassVar = {"conf_dirs": (), "bin_dirs": (BIN,)}

    @pytest.fixture(autouse=True)
    def _rules(self) -> Iterator[None]:
        need_plugins()
        yield
        no_rules()
